// Hands a plan to MLX's command encoder. Metal only.
#pragma once

#include <vector>

#include "metal/plan.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlxrt::metal {

namespace mx = mlx::core;

// Cores of the stream's device, as cores_of has them.
int core_count(const mx::Stream& stream);

// Encodes a plan on a stream's encoder. `arrays` are the op's inputs, then its outputs, in the order
// that the plan was made for; all hold data, row-contiguous, at addresses that are multiples of 16
// bytes where vectors are read. Allocates the scratch. Throws std::runtime_error otherwise.
void encode(const Plan& plan, const std::vector<mx::array>& arrays, const mx::Stream& stream,
            const char* op);

// Registers the pools as written by what computed the arrays: the encoder that does so waits for
// those of the arrays, and the next to write into a pool waits for it.
void hold(const std::vector<mx::array>& arrays, const std::vector<mx::array>& pools,
          const mx::Stream& stream);

} // namespace mlxrt::metal
