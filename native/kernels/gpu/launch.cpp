#include "kernels/gpu/launch.h"

#include <algorithm>
#include <bit>

namespace mlxrt::gpu {
namespace {

// Simd-groups that a core keeps busy with one kernel, see KERNEL in dialect.h.
constexpr int simdgroups_of_core = 16;
// Merging costs about as much as reading this many positions; more parts than these are worth it
// only where each is long.
constexpr int most_short_parts = 16;
constexpr int long_part = 512;
constexpr int widest_with_eight = 128;

int group_of(const AttentionShape& shape) {
  return shape.num_q_heads / shape.num_kv_heads;
}

// Query vectors in a simd-group: as many as registers allow.
int most_queries(int head_dim) {
  return head_dim <= widest_with_eight ? 8 : 4;
}

// Their results meet in threadgroup memory, of which Metal has 32 KiB.
int simdgroups_of(int queries, int head_dim) {
  return queries * head_dim <= 512 ? 8 : 4;
}

// Query vectors in a threadgroup.
int most_vectors(int head_dim) {
  return most_queries(head_dim) * simdgroups_of(most_queries(head_dim), head_dim);
}

int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

int queries_of(const AttentionShape& shape, bool is_chunk) {
  const int group = group_of(shape);
  if (is_chunk) {
    return group <= 4 * simdgroups_of(4, shape.head_dim) ? 4 : most_queries(shape.head_dim);
  }
  return std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(group))),
                  most_queries(shape.head_dim));
}

AttentionKey key_of(const AttentionShape& shape, bool is_chunk) {
  const int queries = queries_of(shape, is_chunk);
  return {.element = shape.element,
          .head_dim = shape.head_dim,
          .queries = queries,
          .simdgroups = simdgroups_of(queries, shape.head_dim),
          .chunk = is_chunk,
          .softcap = shape.softcap > 0.0f};
}

// Positions that one tile sees at most.
int64_t most_seen(const AttentionShape& shape, int tile_rows) {
  const int64_t seen = static_cast<int64_t>(shape.max_blocks) * shape.block_size;
  return shape.window > 0 ? std::min<int64_t>(seen, static_cast<int64_t>(shape.window) + tile_rows - 1)
                          : seen;
}

// Long enough that all parts of the step fit on the device at once, so that none waits for a core,
// and that merging is little beside reading. It depends on the whole step, so a row's last bits do.
int part_size_of(const AttentionShape& shape, const AttentionKey& key, int64_t seen, int tiles) {
  const int64_t slots =
      static_cast<int64_t>(shape.cores) * simdgroups_of_core / key.simdgroups;
  const int64_t total = shape.positions > 0 ? std::min(shape.positions, seen * tiles) : seen * tiles;
  const int64_t fitting = (total * shape.num_kv_heads + slots - 1) / slots;
  const int64_t mergeable =
      std::min<int64_t>(long_part, (seen + most_short_parts - 1) / most_short_parts);
  const int64_t least = std::max({fitting, mergeable, int64_t{SMALLEST_PART}});
  const int64_t parts = std::max<int64_t>(1, seen / least);
  const int64_t size = round_up((seen + parts - 1) / parts, SMALLEST_PART);
  return static_cast<int>(std::min<int64_t>(size, LARGEST_PART));
}

AttentionLaunch launch_of(const AttentionShape& shape, bool is_chunk) {
  constexpr float log2_e = 1.44269504088896340736f;
  AttentionLaunch launch{};
  launch.key = key_of(shape, is_chunk);
  const int queries = launch.key.queries;
  const int simdgroups = launch.key.simdgroups;
  const int tile_rows = is_chunk ? std::max(1, simdgroups * queries / group_of(shape)) : 1;
  const int tiles = is_chunk ? shape.num_rows / tile_rows + shape.num_sequences
                             : shape.num_sequences;
  const int64_t seen = most_seen(shape, tile_rows);
  const int part_size = part_size_of(shape, launch.key, seen, tiles);
  const int parts = std::max<int>(1, (seen + part_size - 1) / part_size);
  launch.params = {
      .num_q_heads = shape.num_q_heads,
      .num_kv_heads = shape.num_kv_heads,
      .group = group_of(shape),
      .block_shift = std::countr_zero(static_cast<unsigned>(shape.block_size)),
      .num_blocks = shape.num_blocks,
      .max_blocks = shape.max_blocks,
      .num_sequences = shape.num_sequences,
      .num_rows = shape.num_rows,
      .tile_rows = tile_rows,
      .part_size = part_size,
      .max_parts = parts,
      .window = shape.window,
      .has_sinks = shape.has_sinks,
      .scale = shape.softcap > 0.0f ? shape.scale : shape.scale * log2_e,
      .softcap = shape.softcap,
  };
  // One more than the sequences clears the padding, if there is any: a sequence may have no row.
  const int padding = is_chunk ? 0 : 1;
  launch.grid = {shape.num_kv_heads, parts, tiles + padding};
  launch.merge_grid = {shape.num_kv_heads, tiles, 1};
  // States of the simd-groups and the part's table; or what the threads of a merge share.
  const int states = simdgroups * queries * (shape.head_dim + 2) + part_size / shape.block_size + 2;
  launch.threads = 32 * simdgroups;
  launch.threadgroup_bytes = 4 * std::max(states, launch.threads * 10);
  launch.arrivals = parts > 1 ? static_cast<int64_t>(tiles) * shape.num_kv_heads : 0;
  launch.partial_vectors = launch.arrivals * parts * tile_rows * launch.params.group;
  return launch;
}

} // namespace

const std::vector<int>& kernel_head_dims() {
  static const std::vector<int> sizes = {64, 80, 96, 112, 128, 192, 256};
  return sizes;
}

std::vector<AttentionKey> keys_of(int element, int head_dim) {
  std::vector<AttentionKey> keys;
  AttentionShape shape{};
  shape.element = element;
  shape.head_dim = head_dim;
  shape.num_kv_heads = 1;
  for (shape.num_q_heads = 1; shape.num_q_heads <= most_vectors(head_dim); ++shape.num_q_heads) {
    for (const bool is_chunk : {false, true}) {
      for (const float softcap : {0.0f, 1.0f}) {
        shape.softcap = softcap;
        const auto key = key_of(shape, is_chunk);
        if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
          keys.push_back(key);
        }
      }
    }
  }
  return keys;
}

std::string why_not(const AttentionShape& shape) {
  const auto& head_dims = kernel_head_dims();
  if (std::find(head_dims.begin(), head_dims.end(), shape.head_dim) == head_dims.end()) {
    return "no kernel for head size " + std::to_string(shape.head_dim);
  }
  if (shape.block_size < 8 || shape.block_size > 256 ||
      !std::has_single_bit(static_cast<unsigned>(shape.block_size))) {
    return "no kernel for block size " + std::to_string(shape.block_size);
  }
  if (group_of(shape) > most_vectors(shape.head_dim)) {
    return "no kernel for " + std::to_string(group_of(shape)) + " query heads per KV head";
  }
  if (static_cast<int64_t>(shape.num_blocks) * shape.block_size > INT32_MAX) {
    return "no kernel for a pool of more than 2^31 slots";
  }
  return "";
}

std::vector<AttentionLaunch> plan_attention(const AttentionShape& shape) {
  std::vector<AttentionLaunch> launches;
  if (shape.num_rows == 0 || shape.num_sequences == 0) {
    return launches;
  }
  launches.push_back(launch_of(shape, false));
  if (shape.num_rows > 1 && shape.most_rows != 1) {
    launches.push_back(launch_of(shape, true));
  }
  return launches;
}

std::string why_not(const NormRopeShape& shape) {
  if (shape.element != shape.pool_element) {
    return "no kernel for a projection and pools of different dtypes";
  }
  if (shape.head_dim % 8) {
    return "no kernel for head size " + std::to_string(shape.head_dim) + ", no multiple of 8";
  }
  if (shape.pairs % 2) {
    return "no kernel that turns an odd number of pairs, " + std::to_string(shape.pairs);
  }
  if (shape.num_slots > INT32_MAX) {
    return "no kernel for a pool of more than 2^31 slots";
  }
  return "";
}

RowLaunch<NormRopeParams> plan_norm_rope(const NormRopeShape& shape) {
  constexpr int heads_together = RowLaunch<NormRopeParams>::threads / 32;
  const int heads = shape.num_q_heads + 2 * shape.num_kv_heads;
  return {
      .key = {"norm_rope_write", shape.element},
      .params = {.num_q_heads = shape.num_q_heads,
                 .num_kv_heads = shape.num_kv_heads,
                 .head_dim = shape.head_dim,
                 .pairs = shape.pairs,
                 .traditional = shape.traditional,
                 .norms_queries = shape.norms_queries,
                 .norms_keys = shape.norms_keys,
                 .num_slots = static_cast<int>(shape.num_slots),
                 .eps = shape.eps,
                 .scale = shape.scale},
      .grid = {shape.num_rows, (heads + heads_together - 1) / heads_together, 1},
      .threadgroup_bytes = 16,
  };
}

namespace {

int vectors_of(const RowShape& shape) {
  return shape.size / (shape.element == 0 ? 4 : 8);
}

} // namespace

std::string why_not(const RowShape& shape) {
  if (shape.size % (shape.element == 0 ? 4 : 8)) {
    return "no kernel for rows of " + std::to_string(shape.size) +
        " elements, no whole number of 16 bytes";
  }
  return "";
}

RowLaunch<AddNormParams> plan_add_norm(const RowShape& shape) {
  return {.key = {"add_rms_norm", shape.element},
          .params = {.vectors = vectors_of(shape), .eps = shape.eps},
          .grid = {shape.num_rows, 1, 1},
          .threadgroup_bytes = 16};  // a sum of each simd-group
}

RowLaunch<GateParams> plan_gate(const RowShape& shape) {
  constexpr int threads = RowLaunch<GateParams>::threads;
  const int vectors = vectors_of(shape);
  return {.key = {"swiglu", shape.element},
          .params = {.vectors = vectors},
          .grid = {shape.num_rows, (vectors + threads - 1) / threads, 1},
          .threadgroup_bytes = 16};
}

namespace {

int parts_of(const SampleShape& shape) {
  const int part = SAMPLE_PART_CHUNKS * (shape.element == 0 ? 4 : 8);
  return (shape.vocabulary + part - 1) / part;
}

} // namespace

std::array<int64_t, 5> sample_scratch_bytes(const SampleShape& shape) {
  const int64_t parts = static_cast<int64_t>(shape.num_rows) * parts_of(shape);
  const int64_t bins = 8 * SAMPLE_PART_BINS * parts;
  return {16 * parts, bins, bins, 16 * SAMPLE_CANDIDATE_CHUNKS * parts, (4 * parts + 15) / 16 * 16};
}

std::vector<SampleLaunch> plan_sample(const SampleShape& shape) {
  using enum SampleArray;
  // Bins of 8 bytes, for each thread its own; of what Metal has, it is all.
  constexpr int part_threads = 128, row_threads = 512, bins_bytes = 32768;
  constexpr const char* parts_text = "sample_parts";
  if (shape.num_rows == 0) {
    return {};
  }
  const int parts = parts_of(shape);
  const bool is_whole = shape.vocabulary % (shape.element == 0 ? 4 : 8) == 0;
  const SampleParams params = {.vocabulary = shape.vocabulary,
                               .rule_rows = shape.rule_rows,
                               .by_vectors = shape.is_aligned && is_whole,
                               .parts = parts};
  const Grid rows = {shape.num_rows, 1, 1};
  const Grid parts_of_rows = {parts, shape.num_rows, 1};
  const Grid parts_of_rules = {parts, std::min(shape.num_rows, shape.rule_rows), 1};
  return {
      {{"sample_extent", shape.element}, parts_text, {logits, extents}, 1, params, parts_of_rows,
       part_threads, 64},
      {{"sample_bins", shape.element}, parts_text, {logits, rules, extents, bins}, 3, params,
       parts_of_rules, part_threads, bins_bytes},
      {{"sample_candidates", shape.element}, parts_text,
       {logits, rules, extents, bins, finer_bins, candidates, candidate_counts}, 4, params,
       parts_of_rules, part_threads, bins_bytes},
      {{"sample", shape.element}, "sample",
       {logits, rules, extents, bins, finer_bins, candidates, candidate_counts, tokens, finite,
        least}, 7, params, rows, row_threads, bins_bytes},
  };
}

} // namespace mlxrt::gpu
