// Stands in for <metal_stdlib> where MSL is compiled for the emulator. What is not here is refused
// by the compiler. Nothing of the C++ standard library, so that a kernel compiles in a moment.
#pragma once

#include "machine.h"

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX __FLT_MAX__
#define MAXFLOAT __FLT_MAX__
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define METAL_FUNC inline __attribute__((always_inline))

// Two-byte floats: arithmetic rounds every result, as the type does on a GPU. From float only by an
// explicit conversion.
#define TWO_BYTE_FLOAT(NAME)                                                                \
  struct NAME {                                                                             \
    ushort bits;                                                                            \
    NAME() = default;                                                                       \
    template <class N>                                                                      \
    explicit NAME(N n) : bits(NAME##_bits(static_cast<float>(n))) {}                        \
    operator float() const { return NAME##_value(bits); }                                   \
    NAME& operator+=(NAME o) { return *this = *this + o; }                                  \
    NAME& operator-=(NAME o) { return *this = *this - o; }                                  \
    NAME& operator*=(NAME o) { return *this = *this * o; }                                  \
    friend NAME operator+(NAME a, NAME b) { return NAME(float(a) + float(b)); }             \
    friend NAME operator-(NAME a, NAME b) { return NAME(float(a) - float(b)); }             \
    friend NAME operator*(NAME a, NAME b) { return NAME(float(a) * float(b)); }             \
    friend NAME operator/(NAME a, NAME b) { return NAME(float(a) / float(b)); }             \
    friend NAME operator-(NAME a) { return NAME(-float(a)); }                               \
  };

inline ushort half_bits(float x) {
  return __builtin_bit_cast(ushort, static_cast<_Float16>(x));
}
inline float half_value(ushort bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}
inline ushort bfloat_bits(float x) {
  const uint bits = __builtin_bit_cast(uint, x);
  if (x != x) {
    return static_cast<ushort>(bits >> 16 | 0x40);
  }
  return static_cast<ushort>((static_cast<ulong>(bits) + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float bfloat_value(ushort bits) {
  return __builtin_bit_cast(float, static_cast<uint>(bits) << 16);
}
TWO_BYTE_FLOAT(half)
TWO_BYTE_FLOAT(bfloat)

namespace metal {

template <class T, int N>
struct vec;

#define EACH_OPERATOR(DO) DO(+) DO(-) DO(*) DO(/)
#define VECTOR_OPERATOR(OP)                                                                 \
  friend vec operator OP(vec a, vec b) {                                                    \
    for (int i = 0; i < size; ++i) {                                                        \
      a[i] = a[i] OP b[i];                                                                  \
    }                                                                                       \
    return a;                                                                               \
  }                                                                                         \
  friend vec operator OP(vec a, T b) { return a OP vec(b); }                                \
  friend vec operator OP(T a, vec b) { return vec(a) OP b; }                                \
  vec& operator OP##=(vec o) { return *this = *this OP o; }                                 \
  vec& operator OP##=(T o) { return *this = *this OP vec(o); }
#define VECTOR(N, ALIGNMENT, ...)                                                           \
  template <class T>                                                                        \
  struct alignas(ALIGNMENT * sizeof(T)) vec<T, N> {                                         \
    T __VA_ARGS__;                                                                          \
    static constexpr int size = N;                                                          \
    vec() = default;                                                                        \
    explicit vec(T all) {                                                                   \
      for (int i = 0; i < N; ++i) {                                                         \
        (*this)[i] = all;                                                                   \
      }                                                                                     \
    }                                                                                       \
    template <class... C>                                                                   \
      requires(sizeof...(C) == N)                                                           \
    vec(C... c) {                                                                           \
      T given[N] = {static_cast<T>(c)...};                                                  \
      for (int i = 0; i < N; ++i) {                                                         \
        (*this)[i] = given[i];                                                              \
      }                                                                                     \
    }                                                                                       \
    template <class U>                                                                      \
    explicit vec(vec<U, N> o) {                                                             \
      for (int i = 0; i < N; ++i) {                                                         \
        (*this)[i] = static_cast<T>(o[i]);                                                  \
      }                                                                                     \
    }                                                                                       \
    T& operator[](int i) { return check(i), (&x)[i]; }                                      \
    const T& operator[](int i) const { return check(i), (&x)[i]; }                          \
    static void check(int i) {                                                              \
      if (i < 0 || i >= N) {                                                                \
        emulator::fault("a component of a vector that it has not");                         \
      }                                                                                     \
    }                                                                                       \
    EACH_OPERATOR(VECTOR_OPERATOR)                                                          \
  };
VECTOR(2, 2, x, y)
VECTOR(3, 4, x, y, z)
VECTOR(4, 4, x, y, z, w)

} // namespace metal

#define VECTOR_NAMES(T)        \
  using T##2 = metal::vec<T, 2>; \
  using T##3 = metal::vec<T, 3>; \
  using T##4 = metal::vec<T, 4>;
VECTOR_NAMES(float)
VECTOR_NAMES(half)
VECTOR_NAMES(bfloat)
VECTOR_NAMES(int)
VECTOR_NAMES(uint)
VECTOR_NAMES(short)
VECTOR_NAMES(ushort)
VECTOR_NAMES(uchar)
VECTOR_NAMES(long)

template <class To, class From>
inline To as_type(From from) {
  return __builtin_bit_cast(To, from);
}

namespace metal {

inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
inline float fmin(float a, float b) { return __builtin_fminf(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline uint max(uint a, uint b) { return a > b ? a : b; }
inline uint min(uint a, uint b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
template <class T>
inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T>
inline T select(T no, T yes, bool which) { return which ? yes : no; }
inline int abs(int x) { return x < 0 ? -x : x; }
inline float abs(float x) { return __builtin_fabsf(x); }
inline float fabs(float x) { return __builtin_fabsf(x); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float floor(float x) { return __builtin_floorf(x); }
inline float ceil(float x) { return __builtin_ceilf(x); }
inline float rint(float x) { return __builtin_rintf(x); }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float sin(float x) { return __builtin_sinf(x); }
inline float cos(float x) { return __builtin_cosf(x); }
inline float exp(float x) { return __builtin_expf(x); }
inline float exp2(float x) { return __builtin_exp2f(x); }
inline float log(float x) { return __builtin_logf(x); }
inline float log2(float x) { return __builtin_log2f(x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
inline float tanh(float x) { return __builtin_tanhf(x); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }
inline uint clz(uint x) { return x ? static_cast<uint>(__builtin_clz(x)) : 32u; }
inline float dot(float2 a, float2 b) { return a.x * b.x + a.y * b.y; }
inline float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
template <int N>
inline vec<float, N> fma(vec<float, N> a, vec<float, N> b, vec<float, N> c) {
  for (int i = 0; i < N; ++i) {
    a[i] = fma(a[i], b[i], c[i]);
  }
  return a;
}

#define VARIANTS(SPACE)          \
  namespace SPACE {              \
  using metal::cos;              \
  using metal::exp;              \
  using metal::exp2;             \
  using metal::log;              \
  using metal::log2;             \
  using metal::pow;              \
  using metal::rsqrt;            \
  using metal::sin;              \
  using metal::sqrt;             \
  using metal::tanh;             \
  }
VARIANTS(fast)
VARIANTS(precise)

enum class mem_flags : uint {
  mem_none = emulator::memory_none,
  mem_device = emulator::memory_device,
  mem_threadgroup = emulator::memory_threadgroup,
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<uint>(a) | static_cast<uint>(b));
}
inline void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  emulator::threadgroup_wait(static_cast<uint>(flags), line);
}
inline void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  emulator::simdgroup_wait(static_cast<uint>(flags), line);
}

// What each lane gave to an operation of the simd-group.
template <class T>
struct Gathered {
  static_assert(sizeof(T) <= emulator::lane_value_bytes);
  unsigned char bytes[emulator::lanes][emulator::lane_value_bytes];

  Gathered(const char* operation, T value, uint operand, int line) {
    emulator::simd_exchange(operation, operand, line, &value, sizeof(T), bytes);
  }
  T operator[](uint lane) const {
    if (lane >= emulator::lanes) {
      emulator::fault("a lane that a simd-group has not");
    }
    T value;
    __builtin_memcpy(&value, bytes[lane], sizeof(T));
    return value;
  }
  // As a tree, neighbours first.
  template <class F>
  T reduced(F join) const {
    T all[emulator::lanes];
    for (uint i = 0; i < emulator::lanes; ++i) {
      all[i] = (*this)[i];
    }
    for (uint step = 1; step < emulator::lanes; step *= 2) {
      for (uint i = 0; i < emulator::lanes; i += 2 * step) {
        all[i] = join(all[i], all[i + step]);
      }
    }
    return all[0];
  }
};

template <class T>
inline T simd_sum(T v, int line = __builtin_LINE()) {
  return Gathered<T>("simd_sum", v, 0, line).reduced([](T a, T b) { return a + b; });
}
template <class T>
inline T simd_max(T v, int line = __builtin_LINE()) {
  return Gathered<T>("simd_max", v, 0, line).reduced([](T a, T b) { return max(a, b); });
}
template <class T>
inline T simd_min(T v, int line = __builtin_LINE()) {
  return Gathered<T>("simd_min", v, 0, line).reduced([](T a, T b) { return min(a, b); });
}
inline bool simd_any(bool v, int line = __builtin_LINE()) {
  return Gathered<bool>("simd_any", v, 0, line).reduced([](bool a, bool b) { return a || b; });
}
inline bool simd_all(bool v, int line = __builtin_LINE()) {
  return Gathered<bool>("simd_all", v, 0, line).reduced([](bool a, bool b) { return a && b; });
}
template <class T>
inline T simd_shuffle(T v, ushort lane, int line = __builtin_LINE()) {
  return Gathered<T>("simd_shuffle", v, 0, line)[lane];
}
template <class T>
inline T simd_broadcast(T v, ushort lane, int line = __builtin_LINE()) {
  return Gathered<T>("simd_broadcast", v, lane, line)[lane];
}
template <class T>
inline T simd_broadcast_first(T v, int line = __builtin_LINE()) {
  return Gathered<T>("simd_broadcast_first", v, 0, line)[0];
}
template <class T>
inline T simd_shuffle_xor(T v, ushort mask, int line = __builtin_LINE()) {
  return Gathered<T>("simd_shuffle_xor", v, mask, line)[emulator::lane_index() ^ mask];
}
template <class T>
inline T simd_shuffle_down(T v, ushort delta, int line = __builtin_LINE()) {
  const Gathered<T> all("simd_shuffle_down", v, delta, line);
  const uint from = emulator::lane_index() + delta;
  return from < emulator::lanes ? all[from] : v;
}
template <class T>
inline T simd_shuffle_up(T v, ushort delta, int line = __builtin_LINE()) {
  const Gathered<T> all("simd_shuffle_up", v, delta, line);
  const uint lane = emulator::lane_index();
  return lane >= delta ? all[lane - delta] : v;
}
template <class T>
inline T simd_prefix_exclusive_sum(T v, int line = __builtin_LINE()) {
  const Gathered<T> all("simd_prefix_exclusive_sum", v, 0, line);
  T sum = T(0);
  for (uint lane = 0; lane < emulator::lane_index(); ++lane) {
    sum = sum + all[lane];
  }
  return sum;
}
template <class T>
inline T simd_prefix_inclusive_sum(T v, int line = __builtin_LINE()) {
  return simd_prefix_exclusive_sum(v, line) + v;
}

template <class T>
struct numeric_limits;
template <>
struct numeric_limits<float> {
  static constexpr float infinity() { return __builtin_inff(); }
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float lowest() { return -__FLT_MAX__; }
};
template <>
struct numeric_limits<int> {
  static constexpr int max() { return __INT_MAX__; }
  static constexpr int lowest() { return -__INT_MAX__ - 1; }
};

template <class A, class B>
inline constexpr bool is_same_v = __is_same(A, B);

} // namespace metal
