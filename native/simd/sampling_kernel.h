#pragma once

// The loops of the sampling op over a row of logits, in plain arithmetic that the compiler turns into
// vectors of the including file's instruction set. Nothing is fused or reordered in float32, so all
// sets give the same bits.

#include <string.h>

#include "simd/sampling.h"

namespace {

using mlxrt::kernels::Extent;
using mlxrt::kernels::ordered_bits;

constexpr int logit_block = 512;

inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

template <ElementType T>
void widen_logits(const char* logits, int count, float* out) {
  int i = 0;
  for (; i + Simd::lanes <= count; i += Simd::lanes) {
    Simd::store(out + i, load_elements<T>(logits + i * element_bytes<T>));
  }
  if (i < count) {
    char rest[Simd::lanes * element_bytes<T>] = {};
    float lanes[Simd::lanes];
    memcpy(rest, logits + i * element_bytes<T>, (count - i) * element_bytes<T>);
    Simd::store(lanes, load_elements<T>(rest));
    memcpy(out + i, lanes, (count - i) * sizeof(float));
  }
}

// Calls body(first index, float32 logits, how many) for blocks of a row, until it returns false.
template <class F>
void each_block(ElementType type, const void* row, int count, F body) {
  const char* logits = static_cast<const char*>(row);
  alignas(64) float block[logit_block];
  for (int first = 0; first < count; first += logit_block) {
    const int size = min_int(logit_block, count - first);
    switch (type) {
      case ElementType::float32:
        widen_logits<ElementType::float32>(logits + int64_t{first} * 4, size, block);
        break;
      case ElementType::bfloat16:
        widen_logits<ElementType::bfloat16>(logits + int64_t{first} * 2, size, block);
        break;
      case ElementType::float16:
        widen_logits<ElementType::float16>(logits + int64_t{first} * 2, size, block);
        break;
    }
    if (!body(first, block, size)) {
      return;
    }
  }
}

Extent extent(ElementType type, const void* logits, int count) {
  Extent all{INT32_MAX, INT32_MIN};
  each_block(type, logits, count, [&all](int, const float* block, int size) {
    int32_t least = all.least, largest = all.largest;
    for (int i = 0; i < size; ++i) {
      const int32_t ordered = ordered_bits(bits_of(block[i]));
      least = ordered < least ? ordered : least;
      largest = ordered > largest ? ordered : largest;
    }
    all = {least, largest};
    return true;
  });
  return all;
}

int first_equal(ElementType type, const void* logits, int count, float value) {
  int found = count;
  each_block(type, logits, count, [&found, value](int first, const float* block, int size) {
    uint32_t any = 0;
    for (int i = 0; i < size; ++i) {
      any |= block[i] == value ? 1u : 0u;
    }
    for (int i = 0; any && i < size; ++i) {
      if (block[i] == value) {
        found = first + i;
        break;
      }
    }
    return !any;
  });
  return found;
}

// e^-depth. Source: the polynomial of Cephes' expf (S. Moshier, public domain).
inline uint64_t weight_of(float depth) {
  const float x = depth < 43.0f ? depth : 43.0f;  // beyond it nothing is left of the 40 bits
  const float rounded = x * log2_e + 12582912.0f;
  const float n = rounded - 12582912.0f;
  const float r = (n * 0.693359375f - x) + n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = (p * (r * r) + r) + 1.0f;  // e^-depth = y / 2^n
  const uint32_t bits = bits_of(y);
  const uint32_t shift = 127u - (bits >> 23) + (bits_of(rounded) - 0x4b400000u);
  const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  return (mantissa << (mlxrt::kernels::weight_bits - 23)) >> shift;
}

void weigh(ElementType type, const void* logits, int count, float largest, float temperature,
           uint32_t* keys, uint64_t* weights) {
  each_block(type, logits, count, [=](int first, const float* block, int size) {
    uint32_t* block_keys = keys + first;
    uint64_t* block_weights = weights + first;
    for (int i = 0; i < size; ++i) {
      block_keys[i] = bits_of((largest - block[i]) / temperature);
    }
    for (int i = 0; i < size; ++i) {
      block_weights[i] = weight_of(float_of(block_keys[i]));
    }
    return true;
  });
}

uint64_t sum_kept(const uint32_t* keys, const uint64_t* weights, int count, uint32_t limit) {
  uint64_t sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += keys[i] <= limit ? weights[i] : 0;
  }
  return sum;
}

float least_kept(ElementType type, const void* logits, const uint32_t* keys, int count,
                 uint32_t limit) {
  int32_t all = mlxrt::kernels::ordered_infinity;
  each_block(type, logits, count, [&all, keys, limit](int first, const float* block, int size) {
    const uint32_t* block_keys = keys + first;
    int32_t least = all;
    for (int i = 0; i < size; ++i) {
      const int32_t ordered = ordered_bits(bits_of(block[i]));
      const int32_t kept = block_keys[i] <= limit ? ordered : mlxrt::kernels::ordered_infinity;
      least = kept < least ? kept : least;
    }
    all = least;
    return true;
  });
  return float_of(static_cast<uint32_t>(ordered_bits(static_cast<uint32_t>(all))));
}

constexpr mlxrt::kernels::SamplingKernels sampling_kernels{
    extent, first_equal, weigh, sum_kept, least_kept};

} // namespace
