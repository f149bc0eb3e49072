#include "mlxrt/row_ops.h"

#include <cmath>

#include "mlx/ops.h"
#include "src/validate.h"

namespace mlxrt {

std::pair<mx::array, mx::array> add_rms_norm(
    const mx::array& x,
    const mx::array& residual,
    const mx::array& weight,
    float eps,
    mx::StreamOrDevice stream) {
  constexpr const char* op = "add_rms_norm";
  require_rank(x, 2, op, "x");
  require(is_kernel_float(x.dtype()), op, "x must be float32, bfloat16 or float16");
  require(x.shape(1) > 0, op, "x has rows without elements");
  require_rank(residual, 2, op, "residual");
  require_dtype(residual, x.dtype(), op, "residual");
  require_size(residual, 0, x.shape(0), op, "residual", "as in x");
  require_size(residual, 1, x.shape(1), op, "residual", "as in x");
  require_rank(weight, 1, op, "weight");
  require_dtype(weight, x.dtype(), op, "weight");
  require_size(weight, 0, x.shape(1), op, "weight", "a row of x");
  require(std::isfinite(eps) && eps >= 0.0f, op, "eps must be 0 or positive");
  auto made = mx::array::make_arrays(
      {x.shape(), x.shape()}, {x.dtype(), x.dtype()},
      std::make_shared<AddRMSNorm>(mx::to_stream(stream), eps), {x, residual, weight});
  return {made[0], made[1]};
}

bool AddRMSNorm::is_equivalent(const mx::Primitive& other) const {
  return eps_ == static_cast<const AddRMSNorm&>(other).eps_;
}

std::vector<mx::Shape> AddRMSNorm::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[0].shape(), inputs[0].shape()};
}

mx::array swiglu(const mx::array& gate_up, mx::StreamOrDevice stream) {
  constexpr const char* op = "swiglu";
  require_rank(gate_up, 2, op, "gate_up");
  require(is_kernel_float(gate_up.dtype()), op, "gate_up must be float32, bfloat16 or float16");
  require(gate_up.shape(1) % 2 == 0, op,
          "gate_up has shape " + shape_text(gate_up) + "; its rows must be of even size");
  return mx::array({gate_up.shape(0), gate_up.shape(1) / 2}, gate_up.dtype(),
                   std::make_shared<SwiGLU>(mx::to_stream(stream)), {gate_up});
}

std::vector<mx::Shape> SwiGLU::output_shapes(const std::vector<mx::array>& inputs) {
  return {{inputs[0].shape(0), inputs[0].shape(1) / 2}};
}

} // namespace mlxrt
