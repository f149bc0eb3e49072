#include "simd/simd_neon.h"
// The vector type comes first: the kernel is written in terms of it.
#include "simd/attention_kernel.h"

namespace mlxrt::kernels {

const KernelSet& neon_kernels() {
  static constexpr KernelSet set{"neon", attend, read_stream};
  return set;
}

} // namespace mlxrt::kernels
