// Device memory of our own. MLX's extensions can only get unified memory from it, which pages.
#pragma once

#include "mlx/array.h"
#include "mlx/backend/cuda/device.h"

namespace mlxrt::cuda {

namespace mx = mlx::core;

// Memory for an op's output, given back when MLX lets go of it: when all work on it has ended.
mx::allocator::Data allocate(int device, size_t bytes);

// Pinned memory, which host and device both address, for small arrays; given back likewise. MLX takes it
// for memory that the host may read where it lies.
mx::allocator::Data allocate_pinned(size_t bytes);

// Scratch of the ops of one stream, kept between them. Each op that uses it must declare it an output,
// so that MLX orders them; a larger one replaces it, and the old one lives until its users have ended.
class Scratch {
 public:
  // At least `bytes`; zero where it is new, and as the last user left it where it is not.
  mx::array& reserve(mx::cu::CommandEncoder& encoder, size_t bytes);

 private:
  std::optional<mx::array> array_;
};

struct StreamScratch {
  Scratch partials;
  Scratch arrivals;
  Scratch blocks;
  Scratch sampling;
};

// Of the calling thread's stream: MLX evaluates a stream on one thread.
StreamScratch& scratch_of(const mx::Stream& stream);

} // namespace mlxrt::cuda
