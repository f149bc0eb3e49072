#include "mlxrt/sample.h"

#include "mlx/ops.h"
#include "src/validate.h"

namespace mlxrt {

std::vector<mx::array> sample(
    const mx::array& logits, const mx::array& rules, mx::StreamOrDevice stream) {
  constexpr const char* op = "sample";
  require_rank(logits, 2, op, "logits");
  require(is_kernel_float(logits.dtype()), op, "logits must be float32, bfloat16 or float16");
  require(logits.shape(1) > 0 && logits.shape(1) <= vocabulary_max, op,
          "logits has shape " + shape_text(logits) + "; a row must have 1 to " +
              std::to_string(vocabulary_max) + " tokens");
  require_rank(rules, 2, op, "rules");
  require_dtype(rules, mx::float32, op, "rules");
  require_size(rules, 1, rule_count, op, "rules",
               "temperature, top_k, top_p, min_p_depth, uniform");
  require(rules.shape(0) > 0, op, "rules must have at least one row");
  const auto s = mx::to_stream(stream);
  const mx::Shape rows{logits.shape(0)};
  return mx::array::make_arrays(
      {rows, rows, rows}, {mx::int32, mx::bool_, mx::float32}, std::make_shared<Sample>(s),
      {mx::contiguous(logits, false, s), mx::contiguous(rules, false, s)});
}

std::vector<mx::Shape> Sample::output_shapes(const std::vector<mx::array>& inputs) {
  const mx::Shape rows{inputs[0].shape(0)};
  return {rows, rows, rows};
}

} // namespace mlxrt
