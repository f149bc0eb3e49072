#include "simd/rows.h"

#include <math.h>
#include <string.h>

namespace mlxrt::kernels {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

float from_bfloat16(uint16_t h) {
  return float_of(static_cast<uint32_t>(h) << 16);
}

float from_float16(uint16_t h) {
  // Scaling by 2^112 rebiases the exponent and makes subnormals right; infinity and NaN need care.
  const uint32_t magnitude = h & 0x7fffu;
  uint32_t bits = bits_of(float_of(magnitude << 13) * 0x1p112f);
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(bits | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

uint16_t to_float16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u);
  }
  if (magnitude >= 0x477ff000u) { // rounds to 65536 or more
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (magnitude < 0x38800000u) { // subnormal: adding 0.5 lets the hardware round to nearest even
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

} // namespace

void load_row(ElementType type, const void* row, int64_t stride, int count, float scale,
              float* out) {
  const auto* halves = static_cast<const uint16_t*>(row);
  const auto* floats = static_cast<const float*>(row);
  for (int i = 0; i < count; ++i) {
    const int64_t at = i * stride;
    out[i] = scale * (type == ElementType::float32     ? floats[at]
                      : type == ElementType::bfloat16 ? from_bfloat16(halves[at])
                                                      : from_float16(halves[at]));
  }
}

void store_row(ElementType type, void* row, int count, float factor, const float* in) {
  auto* halves = static_cast<uint16_t*>(row);
  switch (type) {
    case ElementType::float32:
      for (int i = 0; i < count; ++i) {
        static_cast<float*>(row)[i] = factor * in[i];
      }
      break;
    case ElementType::bfloat16:
      for (int i = 0; i < count; ++i) {
        halves[i] = to_bfloat16(factor * in[i]);
      }
      break;
    case ElementType::float16:
      for (int i = 0; i < count; ++i) {
        halves[i] = to_float16(factor * in[i]);
      }
      break;
  }
}

void merge_row(float& maximum, float& sum, float* outputs, float part_maximum, float part_sum,
               const float* part_outputs, int count) {
  // A NaN on either side must come through: comparisons are written so that it does.
  const float merged = part_maximum <= maximum ? maximum : part_maximum;
  const float keep = exp2f(maximum - merged);
  const float take = exp2f(part_maximum - merged);
  sum = sum * keep + part_sum * take;
  for (int i = 0; i < count; ++i) {
    outputs[i] = outputs[i] * keep + part_outputs[i] * take;
  }
  maximum = merged;
}

} // namespace mlxrt::kernels
