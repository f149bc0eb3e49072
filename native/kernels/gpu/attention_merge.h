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

// Writes 16 bytes of the output of one vector: element range `chunk` of `parts` partial results,
// `step` vectors apart.
INLINE void merge_parts(DEVICE const float* outputs, DEVICE const float* logarithms, int parts,
                        int step, int chunk, float sink, DEVICE uint4* out) {
  float top = sink;
  for (int i = 0; i < parts; ++i) {
    top = fmax(top, logarithms[long(i) * step]);
  }
  const float base = top == -INFINITY ? 0.0f : top;
  float sum = power_of_two(sink - base);
  float elements[VECTOR_ELEMENTS];
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    elements[e] = 0.0f;
  }
  for (int i = 0; i < parts; ++i) {
    const float weight = power_of_two(logarithms[long(i) * step] - base);
    DEVICE const float* from = outputs + long(i) * step * HEAD_DIM + chunk * VECTOR_ELEMENTS;
    sum += weight;
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      elements[e] += weight * from[e];
    }
  }
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    elements[e] *= factor;
  }
  *out = pack(elements);
}
