#pragma once

// One row of the fused ops, as the translation units of an instruction set see it. Plain data only:
// see attention.h.

#include <stdint.h>

#include "simd/attention.h"

namespace mlxrt::kernels {

// Padding behind every array of float32 that is read or written in whole vectors.
constexpr int padding_floats = 16;

// Angles above this are left to the caller: reducing them needs more than three constants.
constexpr float largest_angle = 4194304.0f;

// A row of the merged projection to its queries and its slot of the pools. Every step is rounded to
// `type`, as MLX's rms_norm and rope do on a CPU.
struct NormRopeRow {
  const char* qkv;          // [num_q_heads + 2 * num_kv_heads, head_dim] of `type`
  char* queries;            // out [num_q_heads, head_dim] of `type`
  char* keys;               // out [num_kv_heads, head_dim] of `pool_type`; null: neither written
  char* values;
  const float* q_norm;      // [head_dim], padded with zeros; null: none
  const float* k_norm;
  const float* cosines;     // [half], padded
  const float* sines;
  float* scratch;           // norm_rope_scratch(head_dim) floats
  float eps;
  ElementType type;
  ElementType pool_type;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int half;                 // pairs that are rotated
  bool traditional;
};

constexpr int padded_floats(int count) {
  return (count + padding_floats - 1) / padding_floats * padding_floats + padding_floats;
}

// A head as it came, a head as it goes, and the halves of a traditional one, before and after.
constexpr int norm_rope_scratch(int head_dim) {
  return 6 * padded_floats(head_dim);
}

// total = x + residual, normed = weight * total / rms(total); each step rounded to `type`.
struct AddNormRow {
  const char* x;
  const char* residual;
  const char* weight;
  char* total;
  char* normed;
  float eps;
  ElementType type;
  int size;
};

// out = silu(gate) * up; each step rounded to `type` as MLX's sigmoid does on a CPU.
struct GateRow {
  const char* gate;
  const char* up;
  char* out;
  ElementType type;
  int size;
};

} // namespace mlxrt::kernels
