#include "mlxrt/row_ops.h"

#include "cpu/dense.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"
#include "simd/dispatch.h"
#include "simd/fused.h"

namespace mlxrt {

void AddRMSNorm::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (auto& output : outputs) {
    output.set_data(mx::allocator::malloc(output.nbytes()));
  }
  count_evaluation(Op::add_rms_norm);
  if (outputs[0].size() == 0) {
    return;
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [x = cpu::Rows(inputs[0]), residual = cpu::Rows(inputs[1]), weight = cpu::Rows(inputs[2]),
       total = outputs[0].data<char>(), normed = outputs[1].data<char>(), eps = eps_,
       type = cpu::element_type(inputs[0].dtype()), size = inputs[0].shape(1)]() mutable {
        x.gather();
        residual.gather();
        weight.gather();
        const auto add_norm = kernels::active_kernels().add_norm;
        cpu::for_rows(x.count(), size, [&](int64_t row) {
          const int64_t at = row * x.row_bytes();
          add_norm({x[row], residual[row], weight[0], total + at, normed + at, eps, type, size});
        });
      });
}

void SwiGLU::eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) {
  output.set_data(mx::allocator::malloc(output.nbytes()));
  count_evaluation(Op::swiglu);
  if (output.size() == 0) {
    return;
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [rows = cpu::Rows(inputs[0]), out = output.data<char>(),
       type = cpu::element_type(output.dtype()), size = output.shape(1)]() mutable {
        rows.gather();
        const auto gate = kernels::active_kernels().gate;
        const int64_t bytes = rows.row_bytes() / 2;
        cpu::for_rows(rows.count(), size, [&](int64_t row) {
          gate({rows[row], rows[row] + bytes, out + row * bytes, type, size});
        });
      });
}

} // namespace mlxrt
