#include "mlxrt/hold_pools.h"

#include "mlxrt/counters.h"

namespace mlxrt {

// A stream of the CPU runs one task after the other: there is nothing to wait for.
void HoldPools::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  count_evaluation(Op::hold_pools);
}

} // namespace mlxrt
