// The builds without GPU kernels: evaluating on a GPU stream says what to do instead.

#include <stdexcept>
#include <string>

#include "mlxrt/copy_blocks.h"
#include "mlxrt/hold_pools.h"
#include "mlxrt/kv_write.h"
#include "mlxrt/norm_rope_write.h"
#include "mlxrt/paged_attention.h"
#include "mlxrt/row_ops.h"
#include "mlxrt/sample.h"

namespace mlxrt {
namespace {

[[noreturn]] void refuse(const std::string& op) {
  throw std::runtime_error(
      "[" + op + "] this build of mlxrt has no GPU kernels; run with `--attention gather`, " +
      "or on the CPU");
}

} // namespace

void KVWrite::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("kv_write");
}

void CopyBlocks::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("copy_blocks");
}

void PagedAttention::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  refuse("paged_attention");
}

void NormRopeWrite::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("norm_rope_write");
}

void AddRMSNorm::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("add_rms_norm");
}

void SwiGLU::eval_gpu(const std::vector<mx::array>&, mx::array&) {
  refuse("swiglu");
}

void HoldPools::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("hold_pools");
}

void Sample::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  refuse("sample");
}

} // namespace mlxrt
