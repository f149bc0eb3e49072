#include "simd/simd_avx2.h"
// The vector type comes first: the kernels are written in terms of it.
#include "simd/attention_kernel.h"
#include "simd/fused_kernel.h"
#include "simd/sampling_kernel.h"

namespace mlxrt::kernels {

const KernelSet& avx2_kernels() {
  static constexpr KernelSet set{"avx2", attend, read_stream, angles, norm_rope, add_norm, gate, &sampling_kernels};
  return set;
}

} // namespace mlxrt::kernels
