#include "kernels/gpu/launch.h"

#include <algorithm>
#include <array>
#include <bit>

namespace mlxrt::gpu {
namespace {

constexpr int simdgroups = 4;
constexpr std::array<int, 7> head_dims = {64, 80, 96, 112, 128, 192, 256};
constexpr int widest_with_eight = 128;

int group_of(const AttentionShape& shape) {
  return shape.num_q_heads / shape.num_kv_heads;
}

// Query vectors in a simd-group: as many as registers allow.
int most_queries(const AttentionShape& shape) {
  return shape.head_dim <= widest_with_eight ? 8 : 4;
}

int queries_of(const AttentionShape& shape, bool is_chunk) {
  const int group = group_of(shape);
  if (is_chunk) {
    return group <= 4 * simdgroups ? 4 : most_queries(shape);
  }
  return std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(group))),
                  most_queries(shape));
}

int most_parts(const AttentionShape& shape, int tile_rows) {
  int64_t seen = static_cast<int64_t>(shape.max_blocks) * shape.block_size;
  if (shape.window > 0) {
    seen = std::min<int64_t>(seen, static_cast<int64_t>(shape.window) + tile_rows - 1);
  }
  const auto parts_of = [seen](int size) { return static_cast<int>((seen + size - 1) / size); };
  // Up to WANTED_PARTS whatever the size, see find_part.
  return std::max(1, seen <= SMALLEST_PART * WANTED_PARTS
                         ? parts_of(SMALLEST_PART)
                         : std::max(WANTED_PARTS, parts_of(LARGEST_PART)));
}

AttentionLaunch launch_of(const AttentionShape& shape, bool is_chunk) {
  constexpr float log2_e = 1.44269504088896340736f;
  AttentionLaunch launch{};
  launch.key = {shape.element, shape.head_dim, queries_of(shape, is_chunk), is_chunk,
                shape.softcap > 0.0f};
  const int tile_rows =
      is_chunk ? std::max(1, simdgroups * launch.key.queries / group_of(shape)) : 1;
  const int parts = most_parts(shape, tile_rows);
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
      .max_parts = parts,
      .window = shape.window,
      .has_sinks = shape.has_sinks,
      .scale = shape.softcap > 0.0f ? shape.scale : shape.scale * log2_e,
      .softcap = shape.softcap,
  };
  const int tiles = is_chunk ? shape.num_rows / tile_rows + shape.num_sequences
                             : shape.num_sequences;
  // One more than the sequences clears the padding, if there is any: a sequence may have no row.
  const int padding = is_chunk ? 0 : 1;
  launch.grid = {shape.num_kv_heads, parts, tiles + padding};
  launch.merge_grid = {shape.num_kv_heads, tiles, 1};
  launch.threadgroup_bytes = 4 *
      (simdgroups * launch.key.queries * (shape.head_dim + 2) + LARGEST_PART / shape.block_size +
       2);
  launch.arrivals = parts > 1 ? static_cast<int64_t>(tiles) * shape.num_kv_heads : 0;
  launch.partial_vectors = launch.arrivals * parts * tile_rows * launch.params.group;
  return launch;
}

} // namespace

std::string why_not(const AttentionShape& shape) {
  if (std::find(head_dims.begin(), head_dims.end(), shape.head_dim) == head_dims.end()) {
    return "no kernel for head size " + std::to_string(shape.head_dim);
  }
  if (shape.block_size < 8 || shape.block_size > 256 ||
      !std::has_single_bit(static_cast<unsigned>(shape.block_size))) {
    return "no kernel for block size " + std::to_string(shape.block_size);
  }
  if (group_of(shape) > simdgroups * most_queries(shape)) {
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

} // namespace mlxrt::gpu
