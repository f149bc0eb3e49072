// Which kernels an op launches, and how: plain C++ for every host and for the emulator.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/gpu/params.h"
#include "kernels/gpu/specialisation.h"

namespace mlxrt::gpu {

struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

// A call of paged_attention as its arguments' shapes describe it.
struct AttentionShape {
  int element;           // as ELEMENT in element.h: of q and of the pools
  int head_dim;          // of queries, keys and values
  int num_q_heads;
  int num_kv_heads;
  int block_size;
  int num_blocks;
  int max_blocks;        // entries in a row of the tables
  int num_sequences;
  int num_rows;          // padding included
  int most_rows = 0;     // of one sequence in this step; 0: not known
  int64_t positions = 0;  // that the rows see, each sequence's counted once; 0: not known
  int cores = 32;        // of the device
  int window = 0;
  bool has_sinks = false;
  float scale = 1.0f;
  float softcap = 0.0f;
};

// One kernel, and what goes with it. Partial results are needed if params.max_parts > 1: HEAD_DIM and 1
// float32 for each of `partial_vectors`, and a merge: `merge_grid`, or `arrivals` zeroed counters.
struct AttentionLaunch {
  AttentionKey key;
  AttentionParams params;
  Grid grid;
  Grid merge_grid;
  int threads;            // of a threadgroup, the merge's too
  int threadgroup_bytes;  // of the merge too
  int64_t partial_vectors;
  int64_t arrivals;
};

// Why no kernel serves the call; empty if one does.
std::string why_not(const AttentionShape& shape);

// Head sizes that there are kernels for.
const std::vector<int>& kernel_head_dims();

// Every kernel that plan_attention may name for an element and a head size.
std::vector<AttentionKey> keys_of(int element, int head_dim);

// The launches of a call that kernels serve: sequences of one row, then the others. None depends on
// another. Empty if there are no rows or no sequences.
std::vector<AttentionLaunch> plan_attention(const AttentionShape& shape);

// One kernel of the fused ops, in threadgroups of 128 threads. None is launched if there are no rows.
template <class Params>
struct RowLaunch {
  static constexpr int threads = 128;
  RowKey key;
  Params params;
  Grid grid;
  int threadgroup_bytes;
};

// A call of norm_rope_write as its arguments' shapes describe it.
struct NormRopeShape {
  int element;           // of qkv and the norms' weights
  int pool_element;
  int num_rows;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int pairs;             // that turn
  int64_t num_slots;     // of the pools
  bool traditional = false;
  bool norms_queries = false;
  bool norms_keys = false;
  float eps = 0.0f;
  float scale = 1.0f;
};

std::string why_not(const NormRopeShape& shape);
RowLaunch<NormRopeParams> plan_norm_rope(const NormRopeShape& shape);

// Rows of add_rms_norm, or of swiglu's output.
struct RowShape {
  int element;
  int num_rows;
  int size;
  float eps = 0.0f;
};

std::string why_not(const RowShape& shape);
RowLaunch<AddNormParams> plan_add_norm(const RowShape& shape);
RowLaunch<GateParams> plan_gate(const RowShape& shape);

// A call of sample as its arguments' shapes describe it.
struct SampleShape {
  int element;
  int num_rows;
  int vocabulary;
  int rule_rows;
  bool is_aligned = true;  // the logits begin at a multiple of 16 bytes
};

// The arrays of sample's kernels: inputs, outputs, then the scratch.
enum class SampleArray {
  logits, rules, tokens, finite, least, extents, bins, finer_bins, candidates, candidate_counts
};

// One kernel of sample, over its arrays in their order; only the first `num_read` are not written.
struct SampleLaunch {
  RowKey key;
  const char* text;  // that has the kernel, of kernels/gpu
  std::vector<SampleArray> arrays;
  int num_read;
  SampleParams params;
  Grid grid;
  int threads;
  int threadgroup_bytes;

  // The file that it is compiled into with its nearest kin.
  std::string file() const {
    return text + ("_element" + std::to_string(key.element));
  }
};

// The launches of a call, each after the one before. Empty if there are no rows.
std::vector<SampleLaunch> plan_sample(const SampleShape& shape);

// Bytes of the scratch arrays, `extents` and those after it, in multiples of 16.
std::array<int64_t, 5> sample_scratch_bytes(const SampleShape& shape);

} // namespace mlxrt::gpu
