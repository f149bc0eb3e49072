#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// Columns of the rules of a row.
enum class Rule : int { temperature, top_k, top_p, min_p_depth, uniform };
inline constexpr int rule_count = 5;

// Tokens of a row at most: sums of weights are held in 64 bits.
inline constexpr int vocabulary_max = 1 << 20;

// Samples one token per row, as rules 3 to 7 of mlxrt/v1/sampling.proto say; without a sort.
//
//   logits [S, V] float32, bfloat16 or float16
//   rules  [R, 5] float32, in the order of `Rule`; rows from R on are greedy, R may exceed S
//   returns tokens [S] int32, finite [S] bool (no logit of the row is NaN or infinite) and least [S]
//           float32: the least logit that rules 4 to 6 keep, minus infinity in greedy rows
//
// A row with NaN or plus infinity, or of nothing but minus infinity, gives token 0. A row's result
// depends on its own logits and rules alone, to the bit; on the CPU all instruction sets agree.
std::vector<mx::array> sample(
    const mx::array& logits, const mx::array& rules, mx::StreamOrDevice stream = {});

class Sample : public mx::Primitive {
 public:
  explicit Sample(mx::Stream stream) : mx::Primitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override {
    return true;
  }
  const char* name() const override {
    return "mlxrt::Sample";
  }
};

} // namespace mlxrt
