#include "mlxrt/norm_rope_write.h"

#include <cmath>

#include "mlx/ops.h"
#include "src/validate.h"

namespace mlxrt {
namespace {

constexpr const char* op = "norm_rope_write";

void check_pools(const mx::array& k_pool, const mx::array& v_pool, int num_kv_heads) {
  require_rank(k_pool, 4, op, "keys");
  require_rank(v_pool, 4, op, "values");
  for (int axis = 0; axis < 4; ++axis) {
    require_size(v_pool, axis, k_pool.shape(axis), op, "values", "as in keys");
  }
  require_size(k_pool, 2, num_kv_heads, op, "keys", "num_kv_heads");
  require(is_kernel_float(k_pool.dtype()), op, "keys must be float32, bfloat16 or float16");
  require_dtype(v_pool, k_pool.dtype(), op, "values");
}

void check_rows(const mx::array& qkv, const mx::array& positions, const mx::array& slots,
                HeadCounts heads, int head_dim) {
  require_rank(qkv, 2, op, "qkv");
  require(is_kernel_float(qkv.dtype()), op, "qkv must be float32, bfloat16 or float16");
  require_size(qkv, 1, (int64_t{heads.q} + 2 * int64_t{heads.kv}) * head_dim, op, "qkv",
               "all heads times the pools' head size");
  require_rank(positions, 1, op, "positions");
  require_dtype(positions, mx::int32, op, "positions");
  require_size(positions, 0, qkv.shape(0), op, "positions", "one per row of qkv");
  require_rank(slots, 1, op, "slots");
  require_dtype(slots, mx::int64, op, "slots");
  require_size(slots, 0, qkv.shape(0), op, "slots", "one per row of qkv");
}

void check_rope(const mx::array& inverse_frequencies, float scale, int head_dim) {
  require_rank(inverse_frequencies, 1, op, "inverse_frequencies");
  require_dtype(inverse_frequencies, mx::float32, op, "inverse_frequencies");
  const int pairs = inverse_frequencies.shape(0);
  require(pairs > 0 && 2 * int64_t{pairs} <= head_dim, op,
          "inverse_frequencies has " + std::to_string(pairs) +
              " entries; it must have one for each pair that turns, at most " +
              std::to_string(head_dim / 2));
  require(std::isfinite(scale), op, "scale must be finite");
}

void add_norm_weight(std::vector<mx::array>& inputs, const std::optional<mx::array>& weight,
                     const char* name, const mx::array& qkv, int head_dim, float eps) {
  if (!weight) {
    return;
  }
  require_rank(*weight, 1, op, name);
  require_dtype(*weight, qkv.dtype(), op, name);
  require_size(*weight, 0, head_dim, op, name, "the head size");
  require(std::isfinite(eps) && eps >= 0.0f, op, "eps must be 0 or positive");
  inputs.push_back(*weight);
}

} // namespace

std::tuple<mx::array, mx::array, mx::array> norm_rope_write(
    const mx::array& qkv,
    const std::optional<mx::array>& q_norm,
    const std::optional<mx::array>& k_norm,
    float eps,
    const mx::array& positions,
    const mx::array& inverse_frequencies,
    float scale,
    bool traditional,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& slots,
    HeadCounts heads,
    mx::StreamOrDevice stream) {
  require(heads.q > 0, op, "num_q_heads must be positive");
  require(heads.kv > 0, op, "num_kv_heads must be positive");
  check_pools(k_pool, v_pool, heads.kv);
  const int head_dim = k_pool.shape(3);
  check_rows(qkv, positions, slots, heads, head_dim);
  check_rope(inverse_frequencies, scale, head_dim);
  std::vector<mx::array> inputs{qkv, positions, inverse_frequencies, slots, k_pool, v_pool};
  add_norm_weight(inputs, q_norm, "q_norm", qkv, head_dim, eps);
  add_norm_weight(inputs, k_norm, "k_norm", qkv, head_dim, eps);
  const NormRopeWrite::Options options{
      .heads = heads,
      .eps = q_norm || k_norm ? eps : 0.0f,
      .scale = scale,
      .traditional = traditional,
      .norms_queries = q_norm.has_value(),
      .norms_keys = k_norm.has_value()};
  auto made = mx::array::make_arrays(
      {{qkv.shape(0), heads.q, head_dim}, k_pool.shape(), v_pool.shape()},
      {qkv.dtype(), k_pool.dtype(), v_pool.dtype()},
      std::make_shared<NormRopeWrite>(mx::to_stream(stream), options),
      inputs);
  return {made[0], made[1], made[2]};
}

bool NormRopeWrite::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const NormRopeWrite&>(other).options_;
  return options_.heads.q == o.heads.q && options_.heads.kv == o.heads.kv &&
      options_.eps == o.eps && options_.scale == o.scale &&
      options_.traditional == o.traditional && options_.norms_queries == o.norms_queries &&
      options_.norms_keys == o.norms_keys;
}

std::vector<mx::Shape> NormRopeWrite::output_shapes(const std::vector<mx::array>& inputs) {
  const auto& pool = inputs[k_pool].shape();
  return {{inputs[qkv].shape(0), options_.heads.q, pool[3]}, pool, inputs[v_pool].shape()};
}

} // namespace mlxrt
