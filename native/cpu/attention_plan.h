#pragma once

// How one paged_attention evaluation is cut into work for the threads.
//
// Query rows of a sequence go in tiles (they share every K and V load), positions in parts of 512.
// Each part of a tile leaves a softmax state (maximum, sum, weighted values), and the parts of a
// row are merged in ascending order. How tiles and parts are dealt out to threads therefore never
// shows in a row's bits: it may follow the number of threads and the batch.

#include <cstdint>
#include <vector>

#include "cpu/int_vector.h"
#include "simd/attention.h"

namespace mlxrt::cpu {

inline constexpr int64_t part_positions = 512;

// A paged_attention call as its task sees it: pointers, strides in elements, sizes.
struct AttentionCall {
  const char* q;
  int64_t q_strides[3];
  kernels::ElementType q_type;
  const char* keys;
  const char* values;
  kernels::ElementType pool_type;
  const int32_t* tables;
  int64_t table_strides[2];
  IntVector<int32_t> query_start;
  IntVector<int32_t> context_len;
  const float* sinks; // or null
  int64_t sink_stride;
  char* out;
  int64_t num_rows;
  int num_sequences;
  int max_blocks;
  int num_blocks;
  int block_size;
  int num_q_heads;
  int num_kv_heads;
  int key_dim;
  int value_dim;
  float scale;
  int64_t window;
  float softcap;
};

// Consecutive rows of one sequence.
struct RowTile {
  int sequence;
  int64_t row;
  int rows;
  int64_t first_position;
  int64_t part_begin;
  int64_t part_end;
  int64_t state; // where its parts' states begin, in floats; -1: its items merge as they go
};

// Parts and KV heads of one tile, computed by one thread.
struct WorkItem {
  int tile;
  int64_t part_begin;
  int64_t part_end;
  int head_begin;
  int head_end;
};

struct AttentionPlan {
  std::vector<RowTile> tiles;
  std::vector<WorkItem> items;
  std::vector<std::vector<int32_t>> copied_tables; // only if the tables' rows are strided
  std::vector<const int32_t*> tables;              // the block ids of each sequence
  int64_t state_floats = 0;
  bool is_parallel = false;
};

inline int padded(int dim) {
  return (dim + 15) / 16 * 16;
}

// Floats of the state of `rows` rows: values, then maxima, then sums.
inline int64_t state_floats(const AttentionCall& call, int64_t rows) {
  return rows * call.num_q_heads * (padded(call.value_dim) + 2);
}

// Checks every index that the kernel will follow and cuts the work. Throws std::out_of_range or
// std::invalid_argument naming the argument.
AttentionPlan plan_attention(const AttentionCall& call, int threads);

} // namespace mlxrt::cpu
