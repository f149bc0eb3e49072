#include "simd/simd_avx512.h"
// The vector type comes first: the kernel is written in terms of it.
#include "simd/attention_kernel.h"

namespace mlxrt::kernels {

const KernelSet& avx512_kernels() {
  static constexpr KernelSet set{"avx512", attend, read_stream};
  return set;
}

} // namespace mlxrt::kernels
