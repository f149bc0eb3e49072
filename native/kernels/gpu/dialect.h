// The language of the GPU kernels: the same text is Metal Shading Language and CUDA C++.
// On the host it is run as MSL, by an emulated <metal_stdlib>. The rules stand in native/README.md.
#pragma once

#define PRAGMA_TEXT(text) #text

#if defined(__CUDACC__)

#include <cuda_fp16.h>

#define DEVICE
#define CONSTANT
#define THREADGROUP
#define THREAD
#define INLINE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) _Pragma(PRAGMA_TEXT(unroll count))

// KERNEL(name)(buffers, PARAMETERS(Struct, index)) { ... }: `params` is the struct.
// RESIDENT simd-groups of a multiprocessor at least: what a thread may have in registers follows.
#define RESIDENT 16
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT / SIMDGROUPS) name
#define BUFFER(index)
#define PARAMETERS(type, index) const type params
#define THREADGROUP_MEMORY reinterpret_cast<float*>(mlxrt_threadgroup_memory)
extern __shared__ uint4 mlxrt_threadgroup_memory[];

#define GROUP_X static_cast<int>(blockIdx.x)
#define GROUP_Y static_cast<int>(blockIdx.y)
#define GROUP_Z static_cast<int>(blockIdx.z)
#define THREAD_INDEX static_cast<int>(threadIdx.x)
#define LANE static_cast<int>(threadIdx.x & 31u)
#define SIMDGROUP static_cast<int>(threadIdx.x >> 5)
#define THREADGROUP_BARRIER() __syncthreads()

typedef unsigned char uchar;
typedef unsigned long ulong;

INLINE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

INLINE uint shuffle_xor(uint value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Each rounded to nearest, whatever stands beside it: never part of a fused operation.
INLINE float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}

INLINE float rounded_sum(float a, float b) {
  return __fadd_rn(a, b);
}

INLINE float rounded_quotient(float a, float b) {
  return __fdiv_rn(a, b);
}

INLINE float bits_to_float(uint bits) {
  return __uint_as_float(bits);
}

INLINE uint float_to_bits(float value) {
  return __float_as_uint(value);
}

// Of a number that is not 0.
INLINE int highest_bit(uint bits) {
  return 31 - __clz(static_cast<int>(bits));
}

INLINE int count_bits(uint bits) {
  return __popc(bits);
}

INLINE float2 halves_to_floats(uint bits) {
  const __half2 pair = *reinterpret_cast<const __half2*>(&bits);
  return __half22float2(pair);
}

INLINE uint floats_to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint*>(&pair);
}

// To nearest, ties to even; a NaN stays one.
INLINE uint floats_to_bfloats(float low, float high) {
  uint pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

INLINE float power_of_two(float exponent) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
}

INLINE float log_two(float value) {
  return __log2f(value);
}

INLINE float hyperbolic_tangent(float value) {
  return tanhf(value);
}

// These four as MLX's own kernels have them.
INLINE float natural_power(float exponent) {
  return expf(exponent);
}

INLINE float inverse_square_root(float value) {
  return rsqrtf(value);
}

INLINE float cosine(float angle) {
  return cosf(angle);
}

INLINE float sine(float angle) {
  return sinf(angle);
}

// K and V are read once: they need not stay in the first-level cache.
INLINE uint4 load_once(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

INLINE uint4 make_vector(uint x, uint y, uint z, uint w) {
  return make_uint4(x, y, z, w);
}

#define MERGES_IN_PLACE 1

// Whether this threadgroup is the last of `count` to come here; what the others wrote is then
// visible to it. The counter starts at zero and is left at zero. All threads must call it.
INLINE bool is_last_arrival(uint* counter, int count) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicInc(counter, static_cast<uint>(count) - 1) == static_cast<uint>(count) - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

#else

#include <metal_stdlib>
using namespace metal;

#define DEVICE device
#define CONSTANT constant
#define THREADGROUP threadgroup
#define THREAD thread
#define INLINE inline
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) _Pragma(PRAGMA_TEXT(unroll count))

// Told how many threads there are, the compiler does not give one more registers than fit.
#define KERNEL(name) [[kernel, max_total_threads_per_threadgroup(THREADS)]] void name
#define BUFFER(index) [[buffer(index)]]
#define PARAMETERS(type, index)                               \
  constant type& params [[buffer(index)]],                    \
  threadgroup float* threadgroup_memory [[threadgroup(0)]],   \
  uint3 group_index [[threadgroup_position_in_grid]],         \
  uint thread_index [[thread_index_in_threadgroup]],          \
  uint lane_index [[thread_index_in_simdgroup]],              \
  uint simdgroup_index [[simdgroup_index_in_threadgroup]]
#define THREADGROUP_MEMORY threadgroup_memory

#define GROUP_X int(group_index.x)
#define GROUP_Y int(group_index.y)
#define GROUP_Z int(group_index.z)
#define THREAD_INDEX int(thread_index)
#define LANE int(lane_index)
#define SIMDGROUP int(simdgroup_index)
#define THREADGROUP_BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)

INLINE float shuffle_xor(float value, int mask) {
  return simd_shuffle_xor(value, ushort(mask));
}

INLINE uint shuffle_xor(uint value, int mask) {
  return simd_shuffle_xor(value, ushort(mask));
}

INLINE float rounded_product(float a, float b) {
  _Pragma("clang fp contract(off)")
  return a * b;
}

INLINE float rounded_sum(float a, float b) {
  _Pragma("clang fp contract(off)")
  return a + b;
}

INLINE float rounded_quotient(float a, float b) {
  return a / b;
}

INLINE float bits_to_float(uint bits) {
  return as_type<float>(bits);
}

INLINE uint float_to_bits(float value) {
  return as_type<uint>(value);
}

INLINE int highest_bit(uint bits) {
  return 31 - int(clz(bits));
}

INLINE int count_bits(uint bits) {
  return int(popcount(bits));
}

INLINE float2 halves_to_floats(uint bits) {
  return float2(as_type<half2>(bits));
}

INLINE uint floats_to_halves(float low, float high) {
  return as_type<uint>(half2(half(low), half(high)));
}

// bfloat16 of a float, to nearest, ties to even; a NaN stays one.
INLINE uint to_bfloat(float value) {
  const uint bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return 0x7fc0u;
  }
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

INLINE uint floats_to_bfloats(float low, float high) {
  return to_bfloat(low) | (to_bfloat(high) << 16);
}

INLINE float power_of_two(float exponent) {
  return fast::exp2(exponent);
}

INLINE float log_two(float value) {
  return fast::log2(value);
}

INLINE float hyperbolic_tangent(float value) {
  return precise::tanh(value);
}

INLINE float natural_power(float exponent) {
  return precise::exp(exponent);
}

INLINE float inverse_square_root(float value) {
  return precise::rsqrt(value);
}

INLINE float cosine(float angle) {
  return fast::cos(angle);
}

INLINE float sine(float angle) {
  return fast::sin(angle);
}

INLINE uint4 load_once(device const uint4* address) {
  return *address;
}

INLINE uint4 make_vector(uint x, uint y, uint z, uint w) {
  return uint4(x, y, z, w);
}

// Metal has no barrier over a device: parts are merged by a second launch.
#define MERGES_IN_PLACE 0

#endif

// Every kernel runs in threadgroups of THREADS threads: SIMDGROUPS simd-groups of 32 lanes.
#define LANES 32
#ifndef SIMDGROUPS
#define SIMDGROUPS 4
#endif
#define THREADS (LANES * SIMDGROUPS)
