#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace mlxrt {

enum class Op : int {
  kv_write,
  copy_blocks,
  paged_attention,
  norm_rope_write,
  add_rms_norm,
  swiglu,
  hold_pools,
  sample
};

inline constexpr std::array<const char*, 8> op_names = {
    "kv_write", "copy_blocks", "paged_attention", "norm_rope_write", "add_rms_norm", "swiglu",
    "hold_pools", "sample"};

// Adds one evaluation of `op`. Any thread.
void count_evaluation(Op op);

// Evaluations of each op since the start or the last reset, in the order of op_names. Any thread.
std::array<uint64_t, op_names.size()> evaluation_counts();

// Sets every count to zero. Any thread.
void reset_evaluation_counts();

} // namespace mlxrt
