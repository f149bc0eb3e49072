#include "cpu/attention_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace mlxrt::cpu {
namespace {

// Below this many bytes of K and V (times the extra arithmetic of many rows) a wake-up costs more
// than the second thread saves.
constexpr int64_t serial_bytes = 4 << 20;

// Tiles of at most this many rows are cut by parts too: their states are small beside the K and V
// that they read.
constexpr int split_rows = 8;

int rows_per_tile(const AttentionCall& call) {
  const int group = call.num_q_heads / call.num_kv_heads;
  return std::max(1, std::min({16, 64 / group, std::max(8, 32 / group)}));
}

[[noreturn]] void refuse(const std::string& what) {
  throw std::out_of_range("[paged_attention] " + what);
}

// Lowest position that the sequence's rows see.
int64_t lowest_position(const AttentionCall& call, int64_t first_position) {
  return call.window > 0 ? std::max<int64_t>(0, first_position - call.window + 1) : 0;
}

void check_sequence(const AttentionCall& call, AttentionPlan& plan, int s, int64_t rows) {
  const int64_t context = call.context_len[s];
  const std::string at = "[" + std::to_string(s) + "]";
  if (context > int64_t{call.max_blocks} * call.block_size) {
    refuse("context_len" + at + " is " + std::to_string(context) + ", block_tables hold " +
           std::to_string(int64_t{call.max_blocks} * call.block_size) + " positions");
  }
  const int32_t* table = call.tables + s * call.table_strides[0];
  if (call.table_strides[1] != 1 && call.max_blocks > 1) {
    std::vector<int32_t> row(call.max_blocks);
    for (int b = 0; b < call.max_blocks; ++b) {
      row[b] = table[b * call.table_strides[1]];
    }
    plan.copied_tables.push_back(std::move(row));
    table = plan.copied_tables.back().data();
  }
  plan.tables[s] = table;
  const int64_t first = lowest_position(call, context - rows) / call.block_size;
  const int64_t end = (context + call.block_size - 1) / call.block_size;
  for (int64_t b = first; b < end; ++b) {
    if (table[b] < 0 || table[b] >= call.num_blocks) {
      refuse("block_tables" + at + "[" + std::to_string(b) + "] is " + std::to_string(table[b]) +
             ", the pool has " + std::to_string(call.num_blocks) + " blocks");
    }
  }
}

void add_tiles(const AttentionCall& call, AttentionPlan& plan, int s) {
  const int64_t begin = call.query_start[s];
  const int64_t end = call.query_start[s + 1];
  const int64_t context = std::max<int32_t>(0, call.context_len[s]);
  const int step = rows_per_tile(call);
  for (int64_t row = begin; row < end; row += step) {
    RowTile tile{};
    tile.sequence = s;
    tile.row = row;
    tile.rows = static_cast<int>(std::min<int64_t>(step, end - row));
    tile.first_position = context - (end - row);
    const int64_t high = tile.first_position + tile.rows;
    if (context > 0 && high > 0) {
      tile.part_begin = lowest_position(call, tile.first_position) / part_positions;
      tile.part_end = (high + part_positions - 1) / part_positions;
    }
    tile.state = -1;
    if (tile.rows <= split_rows && tile.part_end - tile.part_begin > 1) {
      tile.state = plan.state_floats;
      plan.state_floats += (tile.part_end - tile.part_begin) * state_floats(call, tile.rows);
    }
    plan.tiles.push_back(tile);
  }
}

int64_t tile_work(const AttentionCall& call, const RowTile& tile) {
  const int64_t item = call.pool_type == kernels::ElementType::float32 ? 4 : 2;
  const int64_t bytes = (tile.part_end - tile.part_begin) * part_positions * call.num_kv_heads *
                        (call.key_dim + call.value_dim) * item;
  return bytes * std::max<int64_t>(1, tile.rows * call.num_q_heads / call.num_kv_heads / 8);
}

void add_items(const AttentionCall& call, AttentionPlan& plan, int threads) {
  int64_t work = 0;
  int64_t split_parts = 0;
  int64_t whole_tiles = 0;
  for (const auto& tile : plan.tiles) {
    work += tile_work(call, tile);
    split_parts += tile.state >= 0 ? tile.part_end - tile.part_begin : 0;
    whole_tiles += tile.state < 0;
  }
  plan.is_parallel = threads > 1 && work >= serial_bytes;
  const int64_t step = plan.is_parallel ? std::clamp<int64_t>(split_parts / (8 * threads), 1, 8)
                                        : std::max<int64_t>(1, split_parts);
  const int64_t expected = whole_tiles + split_parts / step;
  int head_cuts = 1;
  if (plan.is_parallel && expected < 2 * threads) {
    const int64_t wanted = (2 * threads + expected - 1) / std::max<int64_t>(1, expected);
    head_cuts = static_cast<int>(std::min<int64_t>(call.num_kv_heads, wanted));
  }
  for (int t = 0; t < static_cast<int>(plan.tiles.size()); ++t) {
    const auto& tile = plan.tiles[t];
    for (int cut = 0; cut < head_cuts; ++cut) {
      const int head_begin = call.num_kv_heads * cut / head_cuts;
      const int head_end = call.num_kv_heads * (cut + 1) / head_cuts;
      if (tile.state < 0) {
        plan.items.push_back({t, tile.part_begin, tile.part_end, head_begin, head_end});
        continue;
      }
      for (int64_t part = tile.part_begin; part < tile.part_end; part += step) {
        plan.items.push_back(
            {t, part, std::min(tile.part_end, part + step), head_begin, head_end});
      }
    }
  }
}

} // namespace

AttentionPlan plan_attention(const AttentionCall& call, int threads) {
  AttentionPlan plan;
  plan.tables.resize(call.num_sequences);
  if (call.query_start[0] != 0) {
    refuse("query_start[0] is " + std::to_string(call.query_start[0]) + ", it must be 0");
  }
  for (int s = 0; s < call.num_sequences; ++s) {
    const int64_t rows = int64_t{call.query_start[s + 1]} - call.query_start[s];
    if (rows < 0 || call.query_start[s + 1] > call.num_rows) {
      refuse("query_start[" + std::to_string(s + 1) + "] is " +
             std::to_string(call.query_start[s + 1]) + "; it must not fall and not pass the " +
             std::to_string(call.num_rows) + " rows of q");
    }
    if (rows > 0) {
      check_sequence(call, plan, s, rows);
      add_tiles(call, plan, s);
    }
  }
  add_items(call, plan, threads);
  return plan;
}

} // namespace mlxrt::cpu
