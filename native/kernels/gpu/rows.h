// What the fused ops' kernels share: elements by neighbours, and rounding as MLX's own kernels round.
#pragma once

#include "dialect.h"
#include "element.h"

// The name of a kernel in the text for one element type: op_element0.
#define JOINED(op, element) op##_element##element
#define NAMED_FOR(op, element) JOINED(op, element)
#define NAMED(op) NAMED_FOR(op, ELEMENT)

// 4-byte words of two neighbours in a row.
#if ELEMENT == 0
#define NEIGHBOUR_WORDS 2
#else
#define NEIGHBOUR_WORDS 1
#endif

// Elements 2 * index and 2 * index + 1.
INLINE float2 load_neighbours(DEVICE const uint* row, int index) {
#if ELEMENT == 0
  float2 pair;
  pair.x = bits_to_float(row[2 * index]);
  pair.y = bits_to_float(row[2 * index + 1]);
  return pair;
#else
  return unpack_pair(row[index]);
#endif
}

INLINE void store_neighbours(DEVICE uint* row, int index, float2 pair) {
#if ELEMENT == 0
  row[2 * index] = float_to_bits(pair.x);
  row[2 * index + 1] = float_to_bits(pair.y);
#else
  row[index] = pack_pair(pair.x, pair.y);
#endif
}

// The value as the element type holds it.
INLINE float rounded(float value) {
#if ELEMENT == 0
  return value;
#else
  return unpack_pair(pack_pair(value, 0.0f)).x;
#endif
}

// What a normed element is; the norm and the product with its weight are each rounded.
INLINE float normed(float value, float factor, float weight) {
  const float norm = rounded(value * factor);
  const float weighed = norm * weight;
  return rounded(weighed);
}

INLINE float sum_of_lanes(float value) {
  UNROLL for (int mask = LANES / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}
