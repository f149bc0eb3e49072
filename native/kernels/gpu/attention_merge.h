// Merges what the parts of a context gave for one query vector. A part leaves its normalised output
// and the base-2 logarithm of its sum of weights, both float32.
#pragma once

#include "dialect.h"
#include "element.h"
#include "params.h"

#define LOG2_E 1.44269504088896340736f

// Where the partial results of a tile's vectors lie: outputs [tile, KV head, part, vector,
// HEAD_DIM], logarithms [tile, KV head, part, vector].
INLINE long partial_index(int tile, int kv_head, int part,
                          CONSTANT const AttentionParams& params) {
  const long row = (long(tile) * params.num_kv_heads + kv_head) * params.max_parts + part;
  return row * params.tile_rows * params.group;
}

INLINE float sink_of(DEVICE const float* sinks, int head, CONSTANT const AttentionParams& params) {
  return params.has_sinks ? sinks[head] * LOG2_E : -INFINITY;
}

// A softmax over parts, of 16 bytes of the output.
struct Merged {
  float top;
  float sum;
  float elements[VECTOR_ELEMENTS];
};

INLINE Merged start_merge(float sink) {
  Merged merged;
  merged.top = sink;
  merged.sum = sink == -INFINITY ? 0.0f : 1.0f;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    merged.elements[e] = 0.0f;
  }
  return merged;
}

// Adds what has maximum `top` and sum of weights `sum`; `elements` may lie in any address space.
#define ADD_TO_MERGE(merged, other_top, other_sum, other_elements)                            \
  {                                                                                           \
    const float top_ = fmax((merged).top, other_top);                                         \
    const float base_ = top_ == -INFINITY ? 0.0f : top_;                                      \
    const float kept_ = power_of_two((merged).top - base_);                                   \
    const float added_ = power_of_two((other_top) - base_);                                   \
    (merged).top = top_;                                                                      \
    (merged).sum = (merged).sum * kept_ + (other_sum) * added_;                               \
    UNROLL for (int e_ = 0; e_ < VECTOR_ELEMENTS; ++e_) {                                     \
      (merged).elements[e_] = (merged).elements[e_] * kept_ + (other_elements)[e_] * added_;  \
    }                                                                                         \
  }

// The weighted mean; zero where nothing was seen.
INLINE uint4 finish_merge(THREAD Merged& merged) {
  const float factor = merged.sum == 0.0f ? 0.0f : 1.0f / merged.sum;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    merged.elements[e] *= factor;
  }
  return pack(merged.elements);
}
