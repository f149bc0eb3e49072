#include "mlxrt/paged_attention.h"

#include <cstring>
#include <memory>
#include <new>

#include "cpu/attention_plan.h"
#include "simd/dispatch.h"
#include "simd/rows.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"
#include "mlxrt/thread_pool.h"

namespace mlxrt {
namespace {

using cpu::AttentionCall;
using cpu::AttentionPlan;
using cpu::RowTile;
using cpu::WorkItem;
using kernels::ElementType;

constexpr float log2_e = 1.44269504088896340736f;
constexpr int64_t scratch_floats_kept = 16 << 20;

// A thread's scratch memory, 64-byte aligned, kept between calls unless it became large.
class Scratch {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      data_.reset(static_cast<float*>(
          ::operator new(floats * sizeof(float), std::align_val_t{64})));
      size_ = floats;
    }
    return data_.get();
  }

  void trim() {
    if (size_ > scratch_floats_kept) {
      data_.reset();
      size_ = 0;
    }
  }

 private:
  struct Release {
    void operator()(float* p) const {
      ::operator delete(p, std::align_val_t{64});
    }
  };
  std::unique_ptr<float, Release> data_;
  int64_t size_ = 0;
};

int64_t item_bytes(ElementType type) {
  return type == ElementType::float32 ? 4 : 2;
}

ElementType element_type(mx::Dtype dtype) {
  return dtype == mx::float32 ? ElementType::float32
      : dtype == mx::bfloat16 ? ElementType::bfloat16
                              : ElementType::float16;
}

// The softmax state of some rows, over memory of cpu::state_floats floats.
struct State {
  State(const AttentionCall& call, float* memory, int64_t rows)
      : outputs(memory),
        maxima(memory + rows * call.num_q_heads * cpu::padded(call.value_dim)),
        sums(maxima + rows * call.num_q_heads) {}

  float* outputs;
  float* maxima;
  float* sums;
};

class Evaluation {
 public:
  explicit Evaluation(const AttentionCall& call)
      : call_(call), plan_(cpu::plan_attention(call, num_threads())) {}

  void run() {
    thread_local Scratch states;
    states_ = states.reserve(plan_.state_floats);
    run_all(plan_.items.size(), [this](int64_t i) { run_item(plan_.items[i]); });
    run_all(plan_.tiles.size(), [this](int64_t i) {
      const auto& tile = plan_.tiles[i];
      if (tile.state >= 0) {
        merge_split_tile(tile);
      }
    });
    states.trim();
    const int64_t covered = call_.query_start[call_.num_sequences];
    const int64_t row_bytes = call_.num_q_heads * call_.value_dim * item_bytes(call_.q_type);
    std::memset(call_.out + covered * row_bytes, 0, (call_.num_rows - covered) * row_bytes);
  }

 private:
  template <class F>
  void run_all(int64_t count, F&& body) {
    if (plan_.is_parallel) {
      parallel_for(count, body);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      body(i);
    }
  }

  int group() const {
    return call_.num_q_heads / call_.num_kv_heads;
  }

  static Scratch& worker_scratch() {
    thread_local Scratch scratch;
    return scratch;
  }

  // The tile's queries in float32, scaled, for the item's heads.
  void load_queries(const RowTile& tile, const WorkItem& item, float* queries) const {
    const int stride = cpu::padded(call_.key_dim);
    const float scale = call_.softcap > 0.0f ? call_.scale : call_.scale * log2_e;
    for (int r = 0; r < tile.rows; ++r) {
      for (int h = item.head_begin * group(); h < item.head_end * group(); ++h) {
        float* to = queries + (static_cast<int64_t>(r) * call_.num_q_heads + h) * stride;
        const int64_t at = (tile.row + r) * call_.q_strides[0] + h * call_.q_strides[1];
        kernels::load_row(call_.q_type, call_.q + at * item_bytes(call_.q_type),
                          call_.q_strides[2], call_.key_dim, scale, to);
        std::memset(to + call_.key_dim, 0, (stride - call_.key_dim) * sizeof(float));
      }
    }
  }

  kernels::AttentionPart describe(const RowTile& tile, const WorkItem& item,
                                  const float* queries) const {
    kernels::AttentionPart part{};
    part.queries = queries;
    part.keys = call_.keys;
    part.values = call_.values;
    part.table = plan_.tables[tile.sequence];
    part.first_position = tile.first_position;
    part.window = call_.window;
    part.softcap = call_.softcap;
    part.pool_type = call_.pool_type;
    part.rows = tile.rows;
    part.num_q_heads = call_.num_q_heads;
    part.num_kv_heads = call_.num_kv_heads;
    part.kv_head_begin = item.head_begin;
    part.kv_head_end = item.head_end;
    part.key_dim = call_.key_dim;
    part.value_dim = call_.value_dim;
    part.key_stride = cpu::padded(call_.key_dim);
    part.value_stride = cpu::padded(call_.value_dim);
    part.block_size = call_.block_size;
    return part;
  }

  void run_item(const WorkItem& item) const {
    const auto& tile = plan_.tiles[item.tile];
    const int64_t query_floats =
        static_cast<int64_t>(tile.rows) * call_.num_q_heads * cpu::padded(call_.key_dim);
    const int64_t per_state = cpu::state_floats(call_, tile.rows);
    float* queries = worker_scratch().reserve(query_floats + 2 * per_state);
    load_queries(tile, item, queries);
    auto part = describe(tile, item, queries);
    const State merged(call_, queries + query_floats, tile.rows);
    if (tile.state < 0) {
      start_state(tile, item, merged);
    }
    for (int64_t p = item.part_begin; p < item.part_end; ++p) {
      float* memory = tile.state < 0
          ? queries + query_floats + per_state
          : states_ + tile.state + (p - tile.part_begin) * per_state;
      const State state(call_, memory, tile.rows);
      part.outputs = state.outputs;
      part.maxima = state.maxima;
      part.sums = state.sums;
      part.begin = p * cpu::part_positions;
      part.end = part.begin + cpu::part_positions;
      kernels::active_kernels().attend(part);
      if (tile.state < 0) {
        merge(tile, item, merged, state);
      }
    }
    if (tile.state < 0) {
      finish(tile, item, merged);
    }
  }

  void merge_split_tile(const RowTile& tile) const {
    const int64_t per_state = cpu::state_floats(call_, tile.rows);
    const WorkItem all{0, tile.part_begin, tile.part_end, 0, call_.num_kv_heads};
    const State merged(call_, worker_scratch().reserve(per_state), tile.rows);
    start_state(tile, all, merged);
    for (int64_t p = tile.part_begin; p < tile.part_end; ++p) {
      float* memory = states_ + tile.state + (p - tile.part_begin) * per_state;
      merge(tile, all, merged, State(call_, memory, tile.rows));
    }
    finish(tile, all, merged);
  }

  template <class F>
  void for_each_head_row(const RowTile& tile, const WorkItem& item, F&& body) const {
    for (int r = 0; r < tile.rows; ++r) {
      for (int h = item.head_begin * group(); h < item.head_end * group(); ++h) {
        body(r, h, static_cast<int64_t>(r) * call_.num_q_heads + h);
      }
    }
  }

  void start_state(const RowTile& tile, const WorkItem& item, const State& state) const {
    const int stride = cpu::padded(call_.value_dim);
    for_each_head_row(tile, item, [&](int, int h, int64_t i) {
      state.maxima[i] =
          call_.sinks ? call_.sinks[h * call_.sink_stride] * log2_e : kernels::no_maximum;
      state.sums[i] = call_.sinks ? 1.0f : 0.0f;
      std::memset(state.outputs + i * stride, 0, stride * sizeof(float));
    });
  }

  void merge(const RowTile& tile, const WorkItem& item, const State& into,
             const State& part) const {
    const int stride = cpu::padded(call_.value_dim);
    for_each_head_row(tile, item, [&](int, int, int64_t i) {
      kernels::merge_row(into.maxima[i], into.sums[i], into.outputs + i * stride, part.maxima[i],
                         part.sums[i], part.outputs + i * stride, call_.value_dim);
    });
  }

  void finish(const RowTile& tile, const WorkItem& item, const State& state) const {
    const int stride = cpu::padded(call_.value_dim);
    for_each_head_row(tile, item, [&](int r, int h, int64_t i) {
      const float factor = state.sums[i] == 0.0f ? 0.0f : 1.0f / state.sums[i];
      const int64_t at = ((tile.row + r) * call_.num_q_heads + h) * call_.value_dim;
      kernels::store_row(call_.q_type, call_.out + at * item_bytes(call_.q_type), call_.value_dim,
                         factor, state.outputs + i * stride);
    });
  }

  const AttentionCall call_;
  const AttentionPlan plan_;
  float* states_ = nullptr;
};

} // namespace

void PagedAttention::eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) {
  const auto& q = inputs[0];
  const auto& k_pool = inputs[1];
  const auto& v_pool = inputs[2];
  const auto& tables = inputs[3];
  if (!k_pool.flags().row_contiguous || !v_pool.flags().row_contiguous) {
    throw std::runtime_error("[paged_attention] k_pool and v_pool must be row-contiguous");
  }
  output.set_data(mx::allocator::malloc(output.nbytes()));
  count_evaluation(Op::paged_attention);
  if (output.size() == 0) {
    return;
  }
  AttentionCall call{
      .q = q.data<char>(),
      .q_strides = {q.strides(0), q.strides(1), q.strides(2)},
      .q_type = element_type(q.dtype()),
      .keys = k_pool.data<char>(),
      .values = v_pool.data<char>(),
      .pool_type = element_type(k_pool.dtype()),
      .tables = tables.data<int32_t>(),
      .table_strides = {tables.strides(0), tables.strides(1)},
      .query_start = cpu::IntVector<int32_t>(inputs[4]),
      .context_len = cpu::IntVector<int32_t>(inputs[5]),
      .sinks = inputs.size() > 6 ? inputs[6].data<float>() : nullptr,
      .sink_stride = inputs.size() > 6 ? inputs[6].strides(0) : 0,
      .out = output.data<char>(),
      .num_rows = q.shape(0),
      .num_sequences = tables.shape(0),
      .max_blocks = tables.shape(1),
      .num_blocks = k_pool.shape(0),
      .block_size = k_pool.shape(1),
      .num_q_heads = q.shape(1),
      .num_kv_heads = k_pool.shape(2),
      .key_dim = q.shape(2),
      .value_dim = v_pool.shape(3),
      .scale = scale_,
      .window = window_,
      .softcap = softcap_,
  };
  mx::cpu::get_command_encoder(stream()).dispatch([call] { Evaluation(call).run(); });
}

} // namespace mlxrt
