// Paged attention. One threadgroup per (KV head, part of the context, tile of rows); each loaded
// element of K and V serves all query heads of the group and all rows of the tile.
//
// Compiled for:
//   ELEMENT, HEAD_DIM   see element.h
//   QUERIES             query vectors (row, head) that a simd-group holds: 1, 2, 4 or 8
//   SIMDGROUPS          of a threadgroup
//   CHUNK               0: sequences with one row in the step; 1: those with more
//   SOFTCAP             1: a score s becomes params.softcap * tanh(s / params.softcap)
//   ENTRY, MERGE_ENTRY  names of the kernels
// Where the dialect says MERGES_IN_PLACE, the last threadgroup of a tile to arrive merges its parts
// and leaves arrivals [tile, KV head] zero as it found them; elsewhere MERGE_ENTRY is a launch of its
// own and arrivals is not read.
//
// A row of K lies over ROW_LANES lanes, so that a simd-group reads LANES / ROW_LANES positions at
// once. These sets of lanes go through positions of their own, each with a running softmax, and
// meet at the end: inside the loop nothing is exchanged but the sum of a dot product.
#include "attention_merge.h"
#include "attention_work.h"
#include "element.h"

// 16 elements of each query vector for a lane, half of that where there are many vectors: what a lane
// holds must fit in its registers. Measured, see native/README.md.
#ifndef ROW_LANES
#if ROW_VECTORS <= 8
#define ROW_LANES (QUERIES <= 2 ? 4 : 8)
#elif ROW_VECTORS <= 16
#define ROW_LANES (QUERIES <= 2 ? 8 : 16)
#elif ROW_VECTORS == 24
#define ROW_LANES 8
#elif ROW_VECTORS <= 32 || ROW_VECTORS == 48
#define ROW_LANES 16
#else
#define ROW_LANES 32
#endif
#endif
#define LANE_VECTORS ((ROW_VECTORS + ROW_LANES - 1) / ROW_LANES)
#define LANE_ELEMENTS (LANE_VECTORS * VECTOR_ELEMENTS)
#define LOADS (LANE_VECTORS == 1 && QUERIES != 4 ? 4 : 2)
// For CUDA: eight vectors need twice the registers, so half the threads.
#undef RESIDENT
#define RESIDENT (QUERIES == 8 ? 8 : 16)
#define STRIDE (LANES / ROW_LANES)
#define TILE (LOADS * STRIDE)

// The query vectors of a lane, its share of each, and what it has so far.
struct LaneState {
  float queries[QUERIES * LANE_ELEMENTS];
  float outputs[QUERIES * LANE_ELEMENTS];
  float maxima[QUERIES];
  float sums[QUERIES];
};

INLINE void start_lane(DEVICE const uint4* q, THREAD LaneState& state, Work work, int kv_head,
                       int first_vector, int lane, CONSTANT const AttentionParams& params) {
  UNROLL for (int i = 0; i < QUERIES; ++i) {
    // A vector past the last repeats it; nobody reads what it gives.
    const int vector = min(first_vector + i, work.rows * params.group - 1);
    const int row = work.row + vector / params.group;
    const int head = kv_head * params.group + vector % params.group;
    DEVICE const uint4* from = q + (long(row) * params.num_q_heads + head) * ROW_VECTORS;
    state.maxima[i] = -INFINITY;
    state.sums[i] = 0.0f;
    UNROLL for (int j = 0; j < LANE_VECTORS; ++j) {
      const int at = lane % ROW_LANES + j * ROW_LANES;
      const uint4 loaded = at < ROW_VECTORS ? from[at] : make_vector(0, 0, 0, 0);
      unpack(loaded, state.queries + i * LANE_ELEMENTS + j * VECTOR_ELEMENTS);
    }
    UNROLL for (int e = 0; e < LANE_ELEMENTS; ++e) {
      state.queries[i * LANE_ELEMENTS + e] *= params.scale;
      state.outputs[i * LANE_ELEMENTS + e] = 0.0f;
    }
  }
}

// Slots of the lane's positions, HOLE where the table has none. A position that the part does not
// have is replaced by one that it has: what lies beyond may hold a NaN, which no zero removes.
INLINE void find_slots(THREAD int* slots, THREADGROUP const int* entries, int tile, Part part,
                       int lane, CONSTANT const AttentionParams& params) {
  UNROLL for (int u = 0; u < LOADS; ++u) {
    const int position =
        min(max(tile + u * STRIDE + lane / ROW_LANES, part.begin), part.end - 1);
    const int entry = entries[(position >> params.block_shift) - part.first_entry];
    const int offset = position & ((1 << params.block_shift) - 1);
    slots[u] = entry < 0 ? HOLE : (entry << params.block_shift) + offset;
  }
}

INLINE void load_rows(THREAD uint4* loaded, DEVICE const uint4* pool, THREAD const int* slots,
                      int kv_head, int lane, CONSTANT const AttentionParams& params) {
  UNROLL for (int u = 0; u < LOADS; ++u) {
    DEVICE const uint4* row =
        pool + (long(max(slots[u], 0)) * params.num_kv_heads + kv_head) * ROW_VECTORS;
    UNROLL for (int j = 0; j < LANE_VECTORS; ++j) {
      const int at = lane % ROW_LANES + j * ROW_LANES;
      if (ROW_VECTORS % ROW_LANES == 0 || at < ROW_VECTORS) {
        loaded[u * LANE_VECTORS + j] = CHUNK ? row[at] : load_once(row + at);
      } else {
        loaded[u * LANE_VECTORS + j] = make_vector(0, 0, 0, 0);
      }
    }
  }
}

// Dot products of the lane's positions with its query vectors: the same in all lanes of a row.
INLINE void score_rows(THREAD float* scores, THREAD const uint4* loaded,
                       THREAD const LaneState& state) {
  UNROLL for (int u = 0; u < LOADS; ++u) {
    UNROLL for (int i = 0; i < QUERIES; ++i) {
      scores[u * QUERIES + i] = 0.0f;
    }
    UNROLL for (int j = 0; j < LANE_VECTORS; ++j) {
      float elements[VECTOR_ELEMENTS];
      unpack(loaded[u * LANE_VECTORS + j], elements);
      UNROLL for (int i = 0; i < QUERIES; ++i) {
        UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
          scores[u * QUERIES + i] +=
              elements[e] * state.queries[i * LANE_ELEMENTS + j * VECTOR_ELEMENTS + e];
        }
      }
    }
  }
  UNROLL for (int mask = ROW_LANES / 2; mask > 0; mask /= 2) {
    UNROLL for (int i = 0; i < LOADS * QUERIES; ++i) {
      scores[i] += shuffle_xor(scores[i], mask);
    }
  }
}

// Soft-cap, visibility and the running softmax: scores become weights.
INLINE void weigh_rows(THREAD float* scores, THREAD const int* slots, THREAD LaneState& state,
                       int tile, Part part, Work work, int first_vector, int lane,
                       CONSTANT const AttentionParams& params) {
  UNROLL for (int i = 0; i < QUERIES; ++i) {
    int begin = part.begin;
    int end = part.end;
#if CHUNK
    const int last = work.position + min((first_vector + i) / params.group, work.rows - 1);
    end = min(end, last + 1);
    begin = params.window > 0 ? max(begin, last + 1 - params.window) : begin;
#endif
    float top = state.maxima[i];
    UNROLL for (int u = 0; u < LOADS; ++u) {
      const int position = tile + u * STRIDE + lane / ROW_LANES;
      float score = scores[u * QUERIES + i];
#if SOFTCAP
      score = params.softcap * LOG2_E * hyperbolic_tangent(score / params.softcap);
#endif
      // A row that would need a hole has no result.
      score = slots[u] < 0 ? NAN : score;
      score = position >= begin && position < end ? score : -INFINITY;
      scores[u * QUERIES + i] = score;
      top = fmax(top, score);
    }
    const float base = top == -INFINITY ? 0.0f : top;
    const float factor = power_of_two(state.maxima[i] - base);
    float sum = state.sums[i] * factor;
    UNROLL for (int u = 0; u < LOADS; ++u) {
      scores[u * QUERIES + i] = power_of_two(scores[u * QUERIES + i] - base);
      sum += scores[u * QUERIES + i];
    }
    state.maxima[i] = top;
    state.sums[i] = sum;
    UNROLL for (int e = 0; e < LANE_ELEMENTS; ++e) {
      state.outputs[i * LANE_ELEMENTS + e] *= factor;
    }
  }
}

INLINE void add_rows(THREAD const float* weights, THREAD const uint4* loaded,
                     THREAD LaneState& state) {
  UNROLL for (int u = 0; u < LOADS; ++u) {
    UNROLL for (int j = 0; j < LANE_VECTORS; ++j) {
      float elements[VECTOR_ELEMENTS];
      unpack(loaded[u * LANE_VECTORS + j], elements);
      UNROLL for (int i = 0; i < QUERIES; ++i) {
        const float weight = weights[u * QUERIES + i];
        UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
          const int at = i * LANE_ELEMENTS + j * VECTOR_ELEMENTS + e;
          // A position hidden from this row may hold a NaN that another row sees.
          state.outputs[at] += CHUNK && weight == 0.0f ? 0.0f : weight * elements[e];
        }
      }
    }
  }
}

// The sets of lanes of a simd-group meet: afterwards the first set has the sum of all.
INLINE void join_lanes(THREAD LaneState& state) {
  UNROLL for (int i = 0; i < QUERIES; ++i) {
    float top = state.maxima[i];
    UNROLL for (int mask = ROW_LANES; mask < LANES; mask *= 2) {
      top = fmax(top, shuffle_xor(top, mask));
    }
    const float factor = power_of_two(state.maxima[i] - (top == -INFINITY ? 0.0f : top));
    state.maxima[i] = top;
    state.sums[i] *= factor;
    UNROLL for (int e = 0; e < LANE_ELEMENTS; ++e) {
      state.outputs[i * LANE_ELEMENTS + e] *= factor;
    }
    UNROLL for (int mask = ROW_LANES; mask < LANES; mask *= 2) {
      state.sums[i] += shuffle_xor(state.sums[i], mask);
      UNROLL for (int e = 0; e < LANE_ELEMENTS; ++e) {
        const int at = i * LANE_ELEMENTS + e;
        state.outputs[at] += shuffle_xor(state.outputs[at], mask);
      }
    }
  }
}

// Leaves a simd-group's result in threadgroup memory: outputs, then maxima, then sums.
INLINE void store_lane(THREADGROUP float* states, THREAD const LaneState& state, int simdgroup,
                       int lane) {
  UNROLL for (int i = 0; i < QUERIES; ++i) {
    const int vector = simdgroup * QUERIES + i;
    if (lane == 0) {
      states[SIMDGROUPS * QUERIES * HEAD_DIM + vector] = state.maxima[i];
      states[SIMDGROUPS * QUERIES * (HEAD_DIM + 1) + vector] = state.sums[i];
    }
    UNROLL for (int j = 0; j < LANE_VECTORS; ++j) {
      const int at = lane + j * ROW_LANES;
      if (lane < ROW_LANES && at < ROW_VECTORS) {
        UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
          states[vector * HEAD_DIM + at * VECTOR_ELEMENTS + e] =
              state.outputs[i * LANE_ELEMENTS + j * VECTOR_ELEMENTS + e];
        }
      }
    }
  }
}

// The simd-groups that shared a query vector meet.
INLINE Merged join_simdgroups(THREADGROUP const float* states, int vector, int chunk, int sharers,
                              int step, float sink) {
  THREADGROUP const float* maxima = states + SIMDGROUPS * QUERIES * HEAD_DIM + vector;
  THREADGROUP const float* sums = maxima + SIMDGROUPS * QUERIES;
  Merged merged = start_merge(sink);
  for (int g = 0; g < sharers; ++g) {
    THREADGROUP const float* elements =
        states + (vector + g * step) * HEAD_DIM + chunk * VECTOR_ELEMENTS;
    ADD_TO_MERGE(merged, maxima[g * step], sums[g * step], elements)
  }
  return merged;
}

// Rows past the last sequence's are padding, and zero.
INLINE void clear_padding(DEVICE uint4* out, int first_row, int thread_number,
                          CONSTANT const AttentionParams& params) {
  const long row_vectors = long(params.num_q_heads) * ROW_VECTORS;
  for (long i = first_row * row_vectors + thread_number; i < params.num_rows * row_vectors;
       i += THREADS) {
    out[i] = make_vector(0, 0, 0, 0);
  }
}

// Merges the parts of a tile. Where the outputs are fewer than the threads, several threads share
// the parts of one and meet in threadgroup memory.
INLINE void merge_tile(DEVICE const float* partial_outputs,
                       DEVICE const float* partial_logarithms, DEVICE const float* sinks,
                       DEVICE uint4* out, THREADGROUP float* shared, Work work, int tile,
                       int kv_head, int parts, int thread_number,
                       CONSTANT const AttentionParams& params) {
  const long first = partial_index(tile, kv_head, 0, params);
  const int step = params.tile_rows * params.group;
  const int outputs = work.rows * params.group * ROW_VECTORS;
  const int sharers = max(THREADS / outputs, 1);
  const int share = thread_number / outputs;
  for (int i = thread_number - share * outputs; i < outputs && share < sharers; i += THREADS) {
    const int vector = i / ROW_VECTORS;
    const int chunk = i % ROW_VECTORS;
    const int head = kv_head * params.group + vector % params.group;
    const long row = work.row + vector / params.group;
    Merged merged = start_merge(share == 0 ? sink_of(sinks, head, params) : -INFINITY);
    UNROLL_BY(4) for (int p = share; p < parts; p += sharers) {
      const long at = first + long(p) * step + vector;
      DEVICE const float* elements = partial_outputs + at * HEAD_DIM + chunk * VECTOR_ELEMENTS;
      ADD_TO_MERGE(merged, partial_logarithms[at], 1.0f, elements)
    }
    if (sharers == 1) {
      out[(row * params.num_q_heads + head) * ROW_VECTORS + chunk] = finish_merge(merged);
    } else {
      THREADGROUP float* kept = shared + thread_number * (VECTOR_ELEMENTS + 2);
      kept[0] = merged.top;
      kept[1] = merged.sum;
      UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
        kept[2 + e] = merged.elements[e];
      }
    }
  }
  THREADGROUP_BARRIER();
  if (sharers > 1 && share == 0) {
    const int vector = thread_number / ROW_VECTORS;
    const int head = kv_head * params.group + vector % params.group;
    const long row = work.row + vector / params.group;
    Merged merged = start_merge(-INFINITY);
    for (int g = 0; g < sharers; ++g) {
      THREADGROUP const float* kept =
          shared + (thread_number + g * outputs) * (VECTOR_ELEMENTS + 2);
      ADD_TO_MERGE(merged, kept[0], kept[1], kept + 2)
    }
    out[(row * params.num_q_heads + head) * ROW_VECTORS + thread_number % ROW_VECTORS] =
        finish_merge(merged);
  }
}

KERNEL(ENTRY)(
    DEVICE const uint4* q BUFFER(0),
    DEVICE const uint4* k_pool BUFFER(1),
    DEVICE const uint4* v_pool BUFFER(2),
    DEVICE const int* block_tables BUFFER(3),
    DEVICE const int* query_start BUFFER(4),
    DEVICE const int* context_len BUFFER(5),
    DEVICE const float* sinks BUFFER(6),
    DEVICE uint4* out BUFFER(7),
    DEVICE float* partial_outputs BUFFER(8),
    DEVICE float* partial_logarithms BUFFER(9),
    DEVICE uint* arrivals BUFFER(10),
    PARAMETERS(AttentionParams, 11)) {
  const int kv_head = GROUP_X;
  const int lane = LANE;
  if (!CHUNK && GROUP_Z == params.num_sequences) {
    if (kv_head == 0 && GROUP_Y == 0) {
      clear_padding(out, query_start[params.num_sequences], THREAD_INDEX, params);
    }
    return;
  }
  const Work work = find_work(query_start, context_len, GROUP_Z, params);
  if (work.rows == 0) {
    return;
  }
  const Part part = find_part(work, GROUP_Y, params);
  if (part.index >= max(part.count, 1)) {
    return;
  }
  // Vectors over simd-groups; those left over share the positions.
  const int vectors = work.rows * params.group;
  const int sets = (vectors + QUERIES - 1) / QUERIES;
  const int sharers = SIMDGROUPS / sets;
  const int first_vector = SIMDGROUP % sets * QUERIES;
  THREADGROUP float* states = THREADGROUP_MEMORY;
  THREADGROUP int* entries =
      (THREADGROUP int*)(states + SIMDGROUPS * QUERIES * (HEAD_DIM + 2));
  load_table(entries, block_tables + long(work.sequence) * params.max_blocks, part, THREAD_INDEX,
             params);
  LaneState state;
  start_lane(q, state, work, kv_head, first_vector, lane, params);
  THREADGROUP_BARRIER();

  const int step = sharers * TILE;
  int tile = part.begin + SIMDGROUP / sets * TILE;
  if (SIMDGROUP / sets < sharers && tile < part.end) {
    int slots[LOADS];
    uint4 keys[LOADS * LANE_VECTORS];
    find_slots(slots, entries, tile, part, lane, params);
    load_rows(keys, k_pool, slots, kv_head, lane, params);
    for (; tile < part.end; tile += step) {
      uint4 values[LOADS * LANE_VECTORS];
      float scores[LOADS * QUERIES];
      load_rows(values, v_pool, slots, kv_head, lane, params);
      score_rows(scores, keys, state);
      weigh_rows(scores, slots, state, tile, part, work, first_vector, lane, params);
      // The next keys are on their way while these values are added.
      if (tile + step < part.end) {
        find_slots(slots, entries, tile + step, part, lane, params);
        load_rows(keys, k_pool, slots, kv_head, lane, params);
      }
      add_rows(scores, values, state);
    }
  }
  join_lanes(state);
  store_lane(states, state, SIMDGROUP, lane);
  THREADGROUP_BARRIER();

  for (int i = THREAD_INDEX; i < vectors * ROW_VECTORS; i += THREADS) {
    const int vector = i / ROW_VECTORS;
    const int chunk = i % ROW_VECTORS;
    const int head = kv_head * params.group + vector % params.group;
    const bool is_whole = part.count <= 1;
    const float sink = is_whole ? sink_of(sinks, head, params) : -INFINITY;
    Merged merged = join_simdgroups(states, vector, chunk, sharers, sets * QUERIES, sink);
    if (is_whole) {
      const long row = work.row + vector / params.group;
      out[(row * params.num_q_heads + head) * ROW_VECTORS + chunk] = finish_merge(merged);
    } else {
      const long at = partial_index(GROUP_Z, kv_head, part.index, params) + vector;
      const float factor = merged.sum == 0.0f ? 0.0f : 1.0f / merged.sum;
      if (chunk == 0) {
        partial_logarithms[at] = merged.top + log_two(merged.sum);
      }
      UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
        partial_outputs[at * HEAD_DIM + chunk * VECTOR_ELEMENTS + e] = merged.elements[e] * factor;
      }
    }
  }
#if MERGES_IN_PLACE
  if (part.count > 1 &&
      is_last_arrival(arrivals + long(GROUP_Z) * params.num_kv_heads + kv_head, part.count)) {
    merge_tile(partial_outputs, partial_logarithms, sinks, out, states, work, GROUP_Z, kv_head,
               part.count, THREAD_INDEX, params);
  }
#endif
}

#if !MERGES_IN_PLACE
// One threadgroup per (KV head, tile), after the kernel above.
KERNEL(MERGE_ENTRY)(
    DEVICE const int* query_start BUFFER(0),
    DEVICE const int* context_len BUFFER(1),
    DEVICE const float* sinks BUFFER(2),
    DEVICE const float* partial_outputs BUFFER(3),
    DEVICE const float* partial_logarithms BUFFER(4),
    DEVICE uint4* out BUFFER(5),
    PARAMETERS(AttentionParams, 6)) {
  const Work work = find_work(query_start, context_len, GROUP_Y, params);
  const int parts = find_part(work, 0, params).count;
  if (work.rows > 0 && parts > 1) {
    merge_tile(partial_outputs, partial_logarithms, sinks, out, THREADGROUP_MEMORY, work, GROUP_Y,
               GROUP_X, parts, THREAD_INDEX, params);
  }
}
#endif
