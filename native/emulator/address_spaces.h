// Stands in for <metal_stdlib> where clang checks the address spaces of MSL: pointers of different
// kinds are different types here, as in Metal's compiler. Declarations only, nothing is run.
#pragma once

#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define kernel

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = _Float16;
using bfloat = __bf16;
using size_t = unsigned long;

#define VECTOR_NAMES(T)                                  \
  typedef T T##2 __attribute__((ext_vector_type(2)));    \
  typedef T T##3 __attribute__((ext_vector_type(3)));    \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTOR_NAMES(float)
VECTOR_NAMES(half)
VECTOR_NAMES(int)
VECTOR_NAMES(uint)
VECTOR_NAMES(short)
VECTOR_NAMES(ushort)
VECTOR_NAMES(uchar)
VECTOR_NAMES(long)

// A vector from its components, from one for all, or from a vector of another type.
template <class V, class A>
V make_components(A a) {
  if constexpr (requires { a.y; }) {
    return __builtin_convertvector(a, V);
  } else {
    return V(a);
  }
}
template <class V, class... A>
  requires(sizeof...(A) > 1)
V make_components(A... a) {
  return V{static_cast<__typeof__(V{}.x)>(a)...};
}
#define float2(...) make_components<float2>(__VA_ARGS__)
#define float4(...) make_components<float4>(__VA_ARGS__)
#define half2(...) make_components<half2>(__VA_ARGS__)
#define half4(...) make_components<half4>(__VA_ARGS__)
#define uint2(...) make_components<uint2>(__VA_ARGS__)
#define uint3(...) make_components<uint3>(__VA_ARGS__)
#define uint4(...) make_components<uint4>(__VA_ARGS__)

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

template <class To, class From>
To as_type(From from) {
  return __builtin_bit_cast(To, from);
}

namespace metal {

float fmax(float, float);
float fmin(float, float);
float max(float, float);
float min(float, float);
int max(int, int);
int min(int, int);
uint max(uint, uint);
uint min(uint, uint);
long max(long, long);
long min(long, long);
float abs(float);
int abs(int);
float fma(float, float, float);
float sqrt(float);
float rsqrt(float);
float floor(float);
float exp(float);
float exp2(float);
float log(float);
float log2(float);
float tanh(float);
bool isnan(float);
bool isinf(float);
uint popcount(uint);
uint clz(uint);
template <class T>
T clamp(T, T, T);
template <class T>
T select(T, T, bool);
float cos(float);
float sin(float);
namespace fast {
float cos(float);
float sin(float);
float rsqrt(float);
float exp(float);
float exp2(float);
float log(float);
float log2(float);
float tanh(float);
} // namespace fast
namespace precise = fast;

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <class T>
T simd_sum(T);
template <class T>
T simd_max(T);
template <class T>
T simd_min(T);
template <class T>
T simd_shuffle(T, ushort);
template <class T>
T simd_shuffle_xor(T, ushort);
template <class T>
T simd_shuffle_down(T, ushort);
template <class T>
T simd_shuffle_up(T, ushort);
template <class T>
T simd_broadcast(T, ushort);
template <class T>
T simd_broadcast_first(T);
template <class T>
T simd_prefix_exclusive_sum(T);
template <class T>
T simd_prefix_inclusive_sum(T);
bool simd_any(bool);
bool simd_all(bool);

} // namespace metal
