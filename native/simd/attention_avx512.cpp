#include "simd/simd_avx512.h"
// The vector type comes first: the kernels are written in terms of it.
#include "simd/attention_kernel.h"
#include "simd/fused_kernel.h"
#include "simd/sampling_kernel.h"

namespace mlxrt::kernels {

const KernelSet& avx512_kernels() {
  static constexpr KernelSet set{"avx512", attend, read_stream, angles, norm_rope, add_norm, gate, &sampling_kernels};
  return set;
}

} // namespace mlxrt::kernels
