#include "simd/simd_generic.h"
// The vector type comes first: the kernel is written in terms of it.
#include "simd/attention_kernel.h"

namespace mlxrt::kernels {

const KernelSet& generic_kernels() {
  static constexpr KernelSet set{"generic", attend, read_stream};
  return set;
}

} // namespace mlxrt::kernels
