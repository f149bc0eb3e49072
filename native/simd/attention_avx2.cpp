#include "simd/simd_avx2.h"
// The vector type comes first: the kernel is written in terms of it.
#include "simd/attention_kernel.h"

namespace mlxrt::kernels {

const KernelSet& avx2_kernels() {
  static constexpr KernelSet set{"avx2", attend, read_stream};
  return set;
}

} // namespace mlxrt::kernels
