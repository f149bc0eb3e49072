#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace {

// 4 float32 lanes of AArch64. All functions have the meaning that simd_generic.h gives.
struct Simd {
  static constexpr int lanes = 4;
  static constexpr int row_block = 4;
  static constexpr int accumulators = 16;
  using Vec = float32x4_t;

  static Vec load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Vec x) { vst1q_f32(p, x); }
  static Vec zero() { return vdupq_n_f32(0.0f); }
  static Vec broadcast(float x) { return vdupq_n_f32(x); }
  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Vec min(Vec a, Vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static Vec round(Vec x) { return vrndnq_f32(x); }
  static Vec scale_by_power(Vec x, Vec n) {
    const int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(x, vreinterpretq_f32_s32(e));
  }
  static float sum(Vec x) { return vaddvq_f32(x); }
  static float maximum(Vec x) { return vmaxvq_f32(x); }
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
  }

  static Vec keep(Vec x, int begin, int end, Vec other) {
    const int32x4_t lane = {0, 1, 2, 3};
    const uint32x4_t inside =
        vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
    return vbslq_f32(inside, x, other);
  }

  static Vec load_float32(const char* p) { return vld1q_f32(reinterpret_cast<const float*>(p)); }
  static Vec load_bfloat16(const char* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  static Vec load_float16(const char* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static uint32x4_t bfloat16_bits(Vec x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    return vshrq_n_u32(vbslq_u32(vceqq_f32(x, x), up, vdupq_n_u32(0x7fc00000)), 16);
  }
  static void store_bfloat16(char* p, Vec x) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vmovn_u32(bfloat16_bits(x)));
  }
  static Vec round_bfloat16(Vec x) {
    return vreinterpretq_f32_u32(vshlq_n_u32(bfloat16_bits(x), 16));
  }
  static void store_float16(char* p, Vec x) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
  }
  static Vec round_float16(Vec x) { return vcvt_f32_f16(vcvt_f16_f32(x)); }
  static Vec where_negative(Vec x, Vec a, Vec b) {
    return vbslq_f32(vcltzq_f32(x), a, b);
  }
  // Never called: rows are multiples of 8 elements.
  static Vec load_float32_half(const char*) { return zero(); }
  static Vec load_bfloat16_half(const char*) { return zero(); }
  static Vec load_float16_half(const char*) { return zero(); }
};

} // namespace
