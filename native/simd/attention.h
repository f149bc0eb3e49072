#pragma once

// The boundary between the code that knows MLX and the translation units compiled for one
// instruction set. Plain data only: an inline function of the standard library or of MLX, compiled
// here with AVX-512 and kept by the linker for everybody, would crash an older machine.

#include <stddef.h>
#include <stdint.h>

namespace mlxrt::kernels {

enum class ElementType : int { float32, bfloat16, float16 };

// Attention of a tile of query rows of one sequence over the positions [begin, end).
// Row r stands at position first_position + r and sees the positions p of the part with
// p <= first_position + r and, with a window w > 0, p > first_position + r - w.
struct AttentionPart {
  const float* queries; // [rows, num_q_heads, key_stride], scaled; padding beyond key_dim is zero
  const char* keys;     // the pool [num_blocks, block_size, num_kv_heads, key_dim]
  const char* values;   // the pool [num_blocks, block_size, num_kv_heads, value_dim]
  const int32_t* table; // the sequence's block ids
  float* maxima;        // out [rows, num_q_heads]: log2 of the largest weight
  float* sums;          // out [rows, num_q_heads]: sum of 2^(score - maximum)
  float* outputs;       // out [rows, num_q_heads, value_stride]: values times 2^(score - maximum)
  int64_t first_position;
  int64_t begin;
  int64_t end;
  int64_t window; // 0: none
  float softcap;  // 0: none; then queries hold scale * log2(e), else scale alone
  ElementType pool_type;
  int rows;
  int num_q_heads;
  int num_kv_heads;
  int kv_head_begin; // the part of the heads to compute
  int kv_head_end;
  int key_dim;   // multiples of 8
  int value_dim;
  int key_stride; // multiples of 16
  int value_stride;
  int block_size;
};

// The maximum of a row that saw nothing; finite, so that differences of maxima are never NaN.
constexpr float no_maximum = -1e30f;

// Positions between two updates of the running maximum. Tiles start at multiples of it, so that a
// row's arithmetic depends on positions alone.
constexpr int tile_positions = 32;

struct NormRopeRow; // in fused.h
struct AddNormRow;
struct GateRow;
struct SamplingKernels;

struct KernelSet {
  const char* name;
  void (*attend)(const AttentionPart& part);
  // Reads bytes (a multiple of 1024) and returns a value that depends on all of them.
  uint32_t (*read_stream)(const void* data, size_t bytes);
  // Cosines and sines of position * inverse_frequencies[i], |each| <= largest_angle, rounded to
  // `type`; all three arrays of padded_floats(half).
  void (*angles)(ElementType type, const float* inverse_frequencies, float position, int half,
                 float* cosines, float* sines);
  void (*norm_rope)(const NormRopeRow& row);
  void (*add_norm)(const AddNormRow& row);
  void (*gate)(const GateRow& row);
  const SamplingKernels* sampling;
};

const KernelSet& generic_kernels();
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
const KernelSet& neon_kernels();

} // namespace mlxrt::kernels
