#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

// 16 float32 lanes. All functions have the meaning that simd_generic.h gives.
struct Simd {
  static constexpr int lanes = 16;
  static constexpr int row_block = 4;
  static constexpr int accumulators = 16;
  using Vec = __m512;

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec broadcast(float x) { return _mm512_set1_ps(x); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static Vec round(Vec x) { return _mm512_roundscale_ps(x, 0); }
  static Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
  static float sum(Vec x) { return _mm512_reduce_add_ps(x); }
  static float maximum(Vec x) { return _mm512_reduce_max_ps(x); }

  static __m256 halves(Vec x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  }
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m256 ab = _mm256_hadd_ps(halves(a), halves(b));
    const __m256 cd = _mm256_hadd_ps(halves(c), halves(d));
    const __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  static Vec keep(Vec x, int begin, int end, Vec other) {
    const uint32_t below_end = end >= lanes ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1u;
    const uint32_t below_begin = begin >= lanes ? 0xffffu : begin <= 0 ? 0u : (1u << begin) - 1u;
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(below_end & ~below_begin), x);
  }

  static Vec load_float32(const char* p) { return _mm512_loadu_ps(p); }
  static Vec load_bfloat16(const char* p) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static Vec load_float16(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512i bfloat16_bits(Vec x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000)), 16);
  }
  static void store_bfloat16(char* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bfloat16_bits(x)));
  }
  static Vec round_bfloat16(Vec x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(bfloat16_bits(x), 16));
  }
  static void store_float16(char* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static Vec round_float16(Vec x) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static Vec where_negative(Vec x, Vec a, Vec b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, zero(), _CMP_LT_OQ), a);
  }
  // The last 8 elements of a row; the upper lanes are zero.
  static Vec load_float32_half(const char* p) { return _mm512_maskz_loadu_ps(0xff, p); }
  static Vec load_bfloat16_half(const char* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_zextsi128_si256(h)), 16));
  }
  static Vec load_float16_half(const char* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtph_ps(_mm256_zextsi128_si256(h));
  }
};

} // namespace
