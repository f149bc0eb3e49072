// silu of the first half of a row times its second half. One thread per 16 bytes of the output.
#include "params.h"
#include "rows.h"

// Every step is rounded, as in MLX's sigmoid on a GPU.
INLINE float sigmoid(float value) {
  const float power = rounded(natural_power(value < 0.0f ? -value : value));
  const float tail = rounded(1.0f / rounded(1.0f + power));
  return value < 0.0f ? tail : rounded(1.0f - tail);
}

KERNEL(NAMED(swiglu))(
    DEVICE const uint4* gate_up BUFFER(0),
    DEVICE uint4* out BUFFER(1),
    PARAMETERS(GateParams, 2)) {
  const long row = GROUP_X;
  const int i = GROUP_Y * THREADS + THREAD_INDEX;
  if (i >= params.vectors) {
    return;
  }
  float gate[VECTOR_ELEMENTS];
  float up[VECTOR_ELEMENTS];
  unpack(gate_up[2 * row * params.vectors + i], gate);
  unpack(gate_up[(2 * row + 1) * params.vectors + i], up);
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    gate[e] = rounded(gate[e] * sigmoid(gate[e])) * up[e];
  }
  out[row * params.vectors + i] = pack(gate);
}
