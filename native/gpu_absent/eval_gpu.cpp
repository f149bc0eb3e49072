// The builds without GPU kernels: evaluating on a GPU stream says what to do instead.

#include <stdexcept>
#include <string>

#include "mlxrt/copy_blocks.h"
#include "mlxrt/kv_write.h"
#include "mlxrt/paged_attention.h"

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

} // namespace mlxrt
