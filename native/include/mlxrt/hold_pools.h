#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// Returns `arrays` as they are, sharing their memory, and holds back whoever later writes into
// `pools` until they have been computed. It follows reads of pools by MLX's own operations: a GPU's
// encoder is told of these as reads alone, and a write in place does not wait for a read of another
// command buffer (Metal) or of the same graph (CUDA). This extension's own readers need it not.
//
//   arrays  any shapes and dtypes, at least one; what was computed from the pools
//   pools   at least one
std::vector<mx::array> hold_pools(
    const std::vector<mx::array>& arrays,
    const std::vector<mx::array>& pools,
    mx::StreamOrDevice stream = {});

class HoldPools : public mx::Primitive {
 public:
  HoldPools(mx::Stream stream, size_t array_count)
      : mx::Primitive(stream), array_count_(array_count) {}

  // Inputs: the arrays, then the pools.
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::HoldPools";
  }

 private:
  size_t array_count_;
};

} // namespace mlxrt
