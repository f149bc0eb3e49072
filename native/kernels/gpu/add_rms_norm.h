// total = x + residual, and its RMS norm times weight. One threadgroup per row.
#include "params.h"
#include "rows.h"

// The outputs may lie where the inputs do: a thread alone reads and writes its vectors.
KERNEL(NAMED(add_rms_norm))(
    DEVICE const uint4* x BUFFER(0),
    DEVICE const uint4* residual BUFFER(1),
    DEVICE const uint4* weight BUFFER(2),
    DEVICE uint4* total BUFFER(3),
    DEVICE uint4* norms BUFFER(4),
    PARAMETERS(AddNormParams, 5)) {
  THREADGROUP float* sums = THREADGROUP_MEMORY;
  const long first = long(GROUP_X) * params.vectors;
  float squares = 0.0f;
  for (int i = THREAD_INDEX; i < params.vectors; i += THREADS) {
    float values[VECTOR_ELEMENTS];
    float added[VECTOR_ELEMENTS];
    unpack(x[first + i], values);
    unpack(residual[first + i], added);
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      values[e] = rounded(values[e] + added[e]);
      squares += values[e] * values[e];
    }
    total[first + i] = pack(values);
  }
  squares = sum_of_lanes(squares);
  if (LANE == 0) {
    sums[SIMDGROUP] = squares;
  }
  THREADGROUP_BARRIER();
  squares = 0.0f;
  UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
    squares += sums[s];
  }
  const float size = float(params.vectors * VECTOR_ELEMENTS);
  const float factor = inverse_square_root(squares / size + params.eps);
  for (int i = THREAD_INDEX; i < params.vectors; i += THREADS) {
    float values[VECTOR_ELEMENTS];
    float weights[VECTOR_ELEMENTS];
    unpack(total[first + i], values);
    unpack(weight[i], weights);
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      values[e] = normed(values[e], factor, weights[e]);
    }
    norms[first + i] = pack(values);
  }
}
