#include "mlxrt/norm_rope_write.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/dense.h"
#include "cpu/int_vector.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"
#include "simd/dispatch.h"
#include "simd/fused.h"
#include "simd/rows.h"

namespace mlxrt {
namespace {

using kernels::ElementType;

// A row of floats as the kernels take it; empty where there is no such array.
std::vector<float> padded(const std::optional<cpu::Rows>& row, ElementType type, int count) {
  if (!row) {
    return {};
  }
  auto all = *row;
  all.gather();
  std::vector<float> floats(kernels::padded_floats(count));
  kernels::load_row(type, all[0], 1, count, 1.0f, floats.data());
  return floats;
}

struct Call {
  cpu::Rows qkv;
  cpu::IntVector<int32_t> positions;
  cpu::IntVector<int64_t> slots;
  cpu::Rows inverse_frequencies;
  std::optional<cpu::Rows> q_norm;
  std::optional<cpu::Rows> k_norm;
  char* queries;
  char* keys;
  char* values;
  int64_t slot_count;
  int64_t pool_row_bytes;
  int64_t query_row_bytes;
  ElementType type;
  ElementType pool_type;
  int head_dim;
  int half;
  NormRopeWrite::Options options;
};

class Evaluation {
 public:
  explicit Evaluation(const Call& call)
      : call_(call),
        q_norm_(padded(call.q_norm, call.type, call.head_dim)),
        k_norm_(padded(call.k_norm, call.type, call.head_dim)),
        inverse_frequencies_(
            padded(call.inverse_frequencies, ElementType::float32, call.half)) {
    call_.qkv.gather();
    for (float each : inverse_frequencies_) {
      // Also where one of them is no number: such angles are not for the kernels.
      largest_ = std::abs(each) <= largest_ ? largest_ : std::abs(each);
    }
  }

  void run() const {
    for (int64_t i = 0; i < call_.slots.size; ++i) {
      if (call_.slots[i] >= call_.slot_count) {
        throw std::out_of_range(
            "[norm_rope_write] slots[" + std::to_string(i) + "] is " +
            std::to_string(call_.slots[i]) + ", the pools have " +
            std::to_string(call_.slot_count) + " slots; nothing was written");
      }
    }
    const int64_t heads = call_.options.heads.q + 2 * call_.options.heads.kv;
    cpu::for_rows(call_.slots.size, heads * call_.head_dim, [this](int64_t row) { run_row(row); });
  }

 private:
  void run_row(int64_t index) const {
    const int table = kernels::padded_floats(call_.half);
    thread_local std::vector<float> memory;
    memory.resize(2 * table + kernels::norm_rope_scratch(call_.head_dim));
    float *cosines = memory.data(), *sines = cosines + table;
    set_angles(static_cast<float>(call_.positions[index]) * call_.options.scale, cosines, sines);
    const int64_t slot = call_.slots[index];
    const bool is_written = slot >= 0;
    kernels::active_kernels().norm_rope({
        .qkv = call_.qkv[index],
        .queries = call_.queries + index * call_.query_row_bytes,
        .keys = is_written ? call_.keys + slot * call_.pool_row_bytes : nullptr,
        .values = is_written ? call_.values + slot * call_.pool_row_bytes : nullptr,
        .q_norm = q_norm_.empty() ? nullptr : q_norm_.data(),
        .k_norm = k_norm_.empty() ? nullptr : k_norm_.data(),
        .cosines = cosines,
        .sines = sines,
        .scratch = sines + table,
        .eps = call_.options.eps,
        .type = call_.type,
        .pool_type = call_.pool_type,
        .num_q_heads = call_.options.heads.q,
        .num_kv_heads = call_.options.heads.kv,
        .head_dim = call_.head_dim,
        .half = call_.half,
        .traditional = call_.options.traditional,
    });
  }

  void set_angles(float position, float* cosines, float* sines) const {
    if (std::abs(position) * largest_ <= kernels::largest_angle) {
      kernels::active_kernels().angles(call_.type, inverse_frequencies_.data(), position,
                                       call_.half, cosines, sines);
      return;
    }
    for (int i = 0; i < call_.half; ++i) {
      const float angle = position * inverse_frequencies_[i];
      cosines[i] = std::cos(angle);
      sines[i] = std::sin(angle);
    }
    for (float* table : {cosines, sines}) {
      std::vector<char> rounded(4 * static_cast<size_t>(call_.half));
      kernels::store_row(call_.type, rounded.data(), call_.half, 1.0f, table);
      kernels::load_row(call_.type, rounded.data(), 1, call_.half, 1.0f, table);
    }
  }

  Call call_;
  std::vector<float> q_norm_;
  std::vector<float> k_norm_;
  std::vector<float> inverse_frequencies_;
  float largest_ = 0.0f;
};

} // namespace

void NormRopeWrite::eval_cpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  for (const int pool : {k_pool, v_pool}) {
    if (!inputs[pool].flags().row_contiguous) {
      throw std::runtime_error(std::string("[norm_rope_write] ") +
                               (pool == k_pool ? "keys" : "values") + " must be row-contiguous");
    }
    // The same data, however many handles and queued readers the pool has.
    outputs[pool == k_pool ? 1 : 2].copy_shared_buffer(inputs[pool]);
  }
  outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
  count_evaluation(Op::norm_rope_write);
  if (outputs[0].size() == 0) {
    return;
  }
  size_t norm = first_norm;
  const auto next_norm = [&](bool is_there) {
    return is_there ? std::optional<cpu::Rows>(inputs[norm++]) : std::nullopt;
  };
  const auto q_norm = next_norm(options_.norms_queries);
  const auto k_norm = next_norm(options_.norms_keys);
  const auto& pool = outputs[1];
  const Call call{
      .qkv = cpu::Rows(inputs[qkv]),
      .positions = cpu::IntVector<int32_t>(inputs[positions]),
      .slots = cpu::IntVector<int64_t>(inputs[slots]),
      .inverse_frequencies = cpu::Rows(inputs[inverse_frequencies]),
      .q_norm = q_norm,
      .k_norm = k_norm,
      .queries = outputs[0].data<char>(),
      .keys = outputs[1].data<char>(),
      .values = outputs[2].data<char>(),
      .slot_count = int64_t{pool.shape(0)} * pool.shape(1),
      .pool_row_bytes = int64_t{pool.shape(2)} * pool.shape(3) * static_cast<int64_t>(pool.itemsize()),
      .query_row_bytes = int64_t{outputs[0].shape(1)} * outputs[0].shape(2) *
          static_cast<int64_t>(outputs[0].itemsize()),
      .type = cpu::element_type(inputs[qkv].dtype()),
      .pool_type = cpu::element_type(pool.dtype()),
      .head_dim = pool.shape(3),
      .half = inputs[inverse_frequencies].shape(0),
      .options = options_,
  };
  mx::cpu::get_command_encoder(stream()).dispatch([call] { Evaluation(call).run(); });
}

} // namespace mlxrt
