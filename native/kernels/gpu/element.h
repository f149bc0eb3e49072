// Vectors of 16 bytes of the element type that the text is compiled for.
//   ELEMENT 0: float32, 1: float16, 2: bfloat16
#pragma once

#include "dialect.h"

#if ELEMENT == 0
#define VECTOR_ELEMENTS 4
#else
#define VECTOR_ELEMENTS 8
#endif
#define ROW_VECTORS (HEAD_DIM / VECTOR_ELEMENTS)

INLINE float2 unpack_pair(uint bits) {
#if ELEMENT == 1
  return halves_to_floats(bits);
#else
  float2 pair;
  pair.x = bits_to_float(bits << 16);
  pair.y = bits_to_float(bits & 0xffff0000u);
  return pair;
#endif
}

INLINE void unpack(uint4 vector, THREAD float* elements) {
#if ELEMENT == 0
  elements[0] = bits_to_float(vector.x);
  elements[1] = bits_to_float(vector.y);
  elements[2] = bits_to_float(vector.z);
  elements[3] = bits_to_float(vector.w);
#else
  const float2 x = unpack_pair(vector.x);
  const float2 y = unpack_pair(vector.y);
  const float2 z = unpack_pair(vector.z);
  const float2 w = unpack_pair(vector.w);
  elements[0] = x.x;
  elements[1] = x.y;
  elements[2] = y.x;
  elements[3] = y.y;
  elements[4] = z.x;
  elements[5] = z.y;
  elements[6] = w.x;
  elements[7] = w.y;
#endif
}

INLINE uint pack_pair(float low, float high) {
#if ELEMENT == 1
  return floats_to_halves(low, high);
#else
  return floats_to_bfloats(low, high);
#endif
}

INLINE uint4 pack(THREAD const float* elements) {
#if ELEMENT == 0
  return make_vector(float_to_bits(elements[0]), float_to_bits(elements[1]),
                     float_to_bits(elements[2]), float_to_bits(elements[3]));
#else
  return make_vector(pack_pair(elements[0], elements[1]), pack_pair(elements[2], elements[3]),
                     pack_pair(elements[4], elements[5]), pack_pair(elements[6], elements[7]));
#endif
}
