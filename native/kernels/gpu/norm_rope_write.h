// RMS norm and rotary embedding of the heads of a merged projection, and the write of keys and values
// to their slots of the pools, in place. One simd-group per (row, head).
#include "params.h"
#include "rows.h"

// One of the heads' norms; none where there are no weights.
struct HeadNorm {
  float factor;
  bool is_there;
};

INLINE float2 finished(DEVICE const uint* head, DEVICE const uint* weights, HeadNorm norm,
                       int index) {
  float2 pair = load_neighbours(head, index);
  if (norm.is_there) {
    const float2 weight = load_neighbours(weights, index);
    pair.x = normed(pair.x, norm.factor, weight.x);
    pair.y = normed(pair.y, norm.factor, weight.y);
  }
  return pair;
}

INLINE HeadNorm norm_of(DEVICE const uint* head, bool is_there, int lane,
                        CONSTANT const NormRopeParams& params) {
  float squares = 0.0f;
  for (int i = lane; is_there && i < params.head_dim / 2; i += LANES) {
    const float2 pair = load_neighbours(head, i);
    squares += pair.x * pair.x;
    squares += pair.y * pair.y;
  }
  HeadNorm norm;
  norm.is_there = is_there;
  norm.factor =
      inverse_square_root(sum_of_lanes(squares) / float(params.head_dim) + params.eps);
  return norm;
}

INLINE float2 turned(float first, float second, float angle) {
  const float c = cosine(angle);
  const float s = sine(angle);
  float2 pair;
  pair.x = first * c - second * s;
  pair.y = first * s + second * c;
  return pair;
}

// A negative slot skips its keys and values; one past the pools is skipped too, and never written.
KERNEL(NAMED(norm_rope_write))(
    DEVICE const uint* qkv BUFFER(0),
    DEVICE const int* positions BUFFER(1),
    DEVICE const float* inverse_frequencies BUFFER(2),
    DEVICE const long* slots BUFFER(3),
    DEVICE const uint* q_norm BUFFER(4),
    DEVICE const uint* k_norm BUFFER(5),
    DEVICE uint* queries BUFFER(6),
    DEVICE uint* k_pool BUFFER(7),
    DEVICE uint* v_pool BUFFER(8),
    PARAMETERS(NormRopeParams, 9)) {
  const int lane = LANE;
  const long row = GROUP_X;
  const int index = GROUP_Y * SIMDGROUPS + SIMDGROUP;
  const int heads = params.num_q_heads + 2 * params.num_kv_heads;
  if (index >= heads) {
    return;
  }
  const bool is_query = index < params.num_q_heads;
  const bool is_value = index >= params.num_q_heads + params.num_kv_heads;
  const long slot = slots[row];
  if (!is_query && (slot < 0 || slot >= params.num_slots)) {
    return;
  }
  const int words = params.head_dim / 2 * NEIGHBOUR_WORDS;
  DEVICE const uint* head = qkv + (row * heads + index) * words;
  if (is_value) {
    const int kv_head = index - params.num_q_heads - params.num_kv_heads;
    DEVICE uint* to = v_pool + (slot * params.num_kv_heads + kv_head) * words;
    for (int i = lane; i < words; i += LANES) {
      to[i] = head[i];
    }
    return;
  }
  DEVICE uint* to = is_query
      ? queries + (row * params.num_q_heads + index) * words
      : k_pool + (slot * params.num_kv_heads + index - params.num_q_heads) * words;
  DEVICE const uint* weights = is_query ? q_norm : k_norm;
  const HeadNorm norm =
      norm_of(head, is_query ? params.norms_queries != 0 : params.norms_keys != 0, lane, params);
  const float position = params.scale * float(positions[row]);
  if (params.traditional) {
    for (int i = lane; i < params.pairs; i += LANES) {
      const float2 pair = finished(head, weights, norm, i);
      store_neighbours(to, i, turned(pair.x, pair.y, position * inverse_frequencies[i]));
    }
  } else {
    // Two pairs at a time: neighbours in both halves.
    for (int i = lane; i < params.pairs / 2; i += LANES) {
      const float2 low = finished(head, weights, norm, i);
      const float2 high = finished(head, weights, norm, params.pairs / 2 + i);
      const float2 x = turned(low.x, high.x, position * inverse_frequencies[2 * i]);
      const float2 y = turned(low.y, high.y, position * inverse_frequencies[2 * i + 1]);
      float2 out;
      out.x = x.x;
      out.y = y.x;
      store_neighbours(to, i, out);
      out.x = x.y;
      out.y = y.y;
      store_neighbours(to, params.pairs / 2 + i, out);
    }
  }
  for (int i = params.pairs + lane; i < params.head_dim / 2; i += LANES) {
    store_neighbours(to, i, finished(head, weights, norm, i));
  }
}
