#pragma once

#include <stdint.h>
#include <string.h>

namespace {

// 4 float32 lanes in the vector types of GCC and Clang: whatever the compiler's baseline offers.
// The other simd_*.h have the same members; this one says what they mean.
struct Simd {
  static constexpr int lanes = 4;        // a divisor of 16
  static constexpr int row_block = 2;    // query rows that one load of K or V serves
  static constexpr int accumulators = 8; // vector registers to spend on accumulators
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));

  static Vec load(const float* p) {
    Vec x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  static void store(float* p, Vec x) { memcpy(p, &x, sizeof(x)); }
  static Vec zero() { return Vec{}; }
  static Vec broadcast(float x) { return Vec{x, x, x, x}; }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec div(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; } // fused where the machine can
  // A NaN in b comes through, one in a does not: the meaning of x86's instruction.
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static Vec min(Vec a, Vec b) { return a < b ? a : b; }
  // To the nearest integer; |x| < 2^22. A NaN stays one.
  static Vec round(Vec x) {
    const Vec magic = broadcast(12582912.0f);
    return (x + magic) - magic;
  }
  // x * 2^n for integers n in [-126, 127].
  static Vec scale_by_power(Vec x, Vec n) {
    // Not a conversion: that of a NaN is undefined, while its product below must be NaN.
    // Unsigned: those of a NaN and of the magic number itself run over, which wraps as it should.
    const Bits e = ((Bits)(n + broadcast(12582912.0f)) << 23) + 0x3f800000u;
    return x * (Vec)e;
  }
  static float sum(Vec x) { return (x[0] + x[1]) + (x[2] + x[3]); }
  static float maximum(Vec x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }
  // The sums over the lanes of four vectors, to out[0..3].
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    out[0] = sum(a);
    out[1] = sum(b);
    out[2] = sum(c);
    out[3] = sum(d);
  }
  // x in the lanes [begin, end), other elsewhere; any begin and end.
  static Vec keep(Vec x, int begin, int end, Vec other) {
    const Int lane = {0, 1, 2, 3};
    const Int inside = (lane >= begin) & (lane < end);
    return inside ? x : other;
  }

  static Bits widen(const char* p) {
    Halves h;
    memcpy(&h, p, sizeof(h));
    return __builtin_convertvector(h, Bits);
  }
  static Vec load_float32(const char* p) {
    Vec x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  static Vec load_bfloat16(const char* p) { return (Vec)(widen(p) << 16); }
  static Vec load_float16(const char* p) {
    const Bits h = widen(p);
    const Bits magnitude = h & 0x7fffu;
    Bits bits = (Bits)((Vec)(magnitude << 13) * broadcast(0x1p112f));
    bits |= (Bits)(magnitude >= 0x7c00u) & 0x7f800000u;
    return (Vec)(bits | ((h & 0x8000u) << 16));
  }
  // To nearest, ties to even; a NaN stays one. Stored are `lanes` elements of two bytes.
  static Bits bfloat16_bits(Vec x) {
    const Bits bits = (Bits)x;
    const Bits up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (x == x ? up : Bits{} + 0x7fc00000u) >> 16;
  }
  static Bits float16_bits(Vec x) {
    const Bits bits = (Bits)x;
    const Bits magnitude = bits & 0x7fffffffu;
    const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal: adding 0.5 lets the hardware round.
    const Bits small = (Bits)((Vec)magnitude + broadcast(0.5f)) - 0x3f000000u;
    Bits rounded = magnitude < 0x38800000u ? small : normal;
    rounded = magnitude >= 0x477ff000u ? Bits{} + 0x7c00u : rounded; // rounds to 65536 or more
    rounded = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : rounded;
    return rounded | ((bits >> 16) & 0x8000u);
  }
  static void store_halves(char* p, Bits bits) {
    const Halves h = __builtin_convertvector(bits, Halves);
    memcpy(p, &h, sizeof(h));
  }
  static void store_bfloat16(char* p, Vec x) { store_halves(p, bfloat16_bits(x)); }
  static Vec round_bfloat16(Vec x) { return (Vec)(bfloat16_bits(x) << 16); }
  static void store_float16(char* p, Vec x) { store_halves(p, float16_bits(x)); }
  static Vec round_float16(Vec x) {
    char halves[sizeof(Halves)];
    store_float16(halves, x);
    return load_float16(halves);
  }
  // a where x < 0, else b: where x is NaN, too.
  static Vec where_negative(Vec x, Vec a, Vec b) { return x < 0.0f ? a : b; }
  // The last lanes / 2 elements of a row, the upper lanes zero: only for 16 lanes.
  static Vec load_float32_half(const char*) { return zero(); }
  static Vec load_bfloat16_half(const char*) { return zero(); }
  static Vec load_float16_half(const char*) { return zero(); }
};

} // namespace
