#pragma once

// What the sampling op needs of one instruction set; see attention.h about this boundary.

#include <stdint.h>

#include "simd/attention.h"

namespace mlxrt::kernels {

// The bits of a float as an integer that orders like the float; -0 stands below 0, NaN outside the
// infinities.
static inline int32_t ordered_bits(uint32_t bits) {
  return static_cast<int32_t>(bits ^ (bits >> 31 ? 0x7fffffffu : 0u));
}
constexpr int32_t ordered_infinity = 0x7f800000;
constexpr int32_t ordered_minus_infinity = -0x7f800001;

// Least and largest of a row, as ordered_bits.
struct Extent {
  int32_t least;
  int32_t largest;
};

// A token's depth is (largest logit - its logit) / temperature, in float32; its key the bits of
// that, which order like it. Its weight is e^-depth as an integer, 2^40 for depth 0: sums of
// weights are exact, in whatever order they are added.
constexpr uint32_t largest_key = 0x7f800000u; // of an infinite depth
constexpr int weight_bits = 40;

struct SamplingKernels {
  // Of `count` logits, at least 1.
  Extent (*extent)(ElementType type, const void* logits, int count);
  // The first index whose logit equals `value`; count if none does.
  int (*first_equal)(ElementType type, const void* logits, int count, float value);
  void (*weigh)(ElementType type, const void* logits, int count, float largest, float temperature,
                uint32_t* keys, uint64_t* weights);
  // Sum of the weights whose keys are at most `limit`.
  uint64_t (*sum_kept)(const uint32_t* keys, const uint64_t* weights, int count, uint32_t limit);
  // The least of the logits whose keys are at most `limit`.
  float (*least_kept)(ElementType type, const void* logits, const uint32_t* keys, int count,
                      uint32_t limit);
};

} // namespace mlxrt::kernels
