#include "simd/simd_generic.h"
// The vector type comes first: the kernels are written in terms of it.
#include "simd/attention_kernel.h"
#include "simd/fused_kernel.h"

namespace mlxrt::kernels {

const KernelSet& generic_kernels() {
  static constexpr KernelSet set{"generic", attend, read_stream, angles, norm_rope, add_norm, gate};
  return set;
}

} // namespace mlxrt::kernels
