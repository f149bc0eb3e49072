#pragma once

#include <stdint.h>

#include "simd/attention.h"

namespace mlxrt::kernels {

// out[i] = scale * row[i * stride] for i < count, in float32.
void load_row(ElementType type, const void* row, int64_t stride, int count, float scale,
              float* out);

// row[i] = factor * in[i] for i < count, rounded to nearest even.
void store_row(ElementType type, void* row, int count, float factor, const float* in);

// Merges a part's softmax state into a running one: both are (log2 maximum, sum, weighted values).
void merge_row(float& maximum, float& sum, float* outputs, float part_maximum, float part_sum,
               const float* part_outputs, int count);

} // namespace mlxrt::kernels
