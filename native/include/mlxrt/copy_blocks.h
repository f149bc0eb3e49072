#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// Copies block sources[i] to block destinations[i] in every pool, in place, and returns handles of
// the pools that readers must use. All sources are read before any destination is written. A pair
// with a negative member is skipped.
//
//   pools        each [num_blocks, ...], any dtype and rank; num_blocks is the same in all
//   sources      [N] int32
//   destinations [N] int32, distinct
//
// The pools must be row-contiguous. Scratch: the blocks of one pool that are read, at most N.
std::vector<mx::array> copy_blocks(
    const std::vector<mx::array>& pools,
    const mx::array& sources,
    const mx::array& destinations,
    mx::StreamOrDevice stream = {});

class CopyBlocks : public mx::Primitive {
 public:
  explicit CopyBlocks(mx::Stream stream) : mx::Primitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::CopyBlocks";
  }
};

} // namespace mlxrt
