#include "mlxrt/paged_attention.h"

#include <cmath>

#include "mlx/ops.h"
#include "src/validate.h"

namespace mlxrt {
namespace {

constexpr const char* op = "paged_attention";

void check_pools(const mx::array& q, const mx::array& k_pool, const mx::array& v_pool) {
  require_rank(q, 3, op, "q");
  require_rank(k_pool, 4, op, "k_pool");
  require_rank(v_pool, 4, op, "v_pool");
  require(is_kernel_float(q.dtype()), op, "q must be float32, bfloat16 or float16");
  require(is_kernel_float(k_pool.dtype()), op, "k_pool must be float32, bfloat16 or float16");
  require_dtype(v_pool, k_pool.dtype(), op, "v_pool");
  for (int axis = 0; axis < 3; ++axis) {
    require_size(v_pool, axis, k_pool.shape(axis), op, "v_pool", "as in k_pool");
  }
  require(k_pool.shape(1) > 0 && k_pool.shape(2) > 0, op,
          "k_pool has shape " + shape_text(k_pool) + "; block size and heads must be positive");
  require(q.shape(1) > 0 && q.shape(1) % k_pool.shape(2) == 0, op,
          "q has " + std::to_string(q.shape(1)) + " heads, not a multiple of k_pool's " +
              std::to_string(k_pool.shape(2)));
  require_size(q, 2, k_pool.shape(3), op, "q", "the head size of k_pool");
  for (const auto* pool : {&k_pool, &v_pool}) {
    require(pool->shape(3) > 0 && pool->shape(3) % 8 == 0, op,
            std::string(pool == &k_pool ? "k_pool" : "v_pool") + " has head size " +
                std::to_string(pool->shape(3)) + "; it must be a positive multiple of 8");
  }
}

void check_tables(const mx::array& block_tables, const mx::array& query_start,
                  const mx::array& context_len) {
  require_rank(block_tables, 2, op, "block_tables");
  require_dtype(block_tables, mx::int32, op, "block_tables");
  require_rank(query_start, 1, op, "query_start");
  require_dtype(query_start, mx::int32, op, "query_start");
  require_rank(context_len, 1, op, "context_len");
  require_dtype(context_len, mx::int32, op, "context_len");
  const int sequences = block_tables.shape(0);
  require_size(query_start, 0, sequences + 1, op, "query_start", "the sequences plus 1");
  require_size(context_len, 0, sequences, op, "context_len", "one per row of block_tables");
}

} // namespace

mx::array paged_attention(
    const mx::array& q,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& block_tables,
    const mx::array& query_start,
    const mx::array& context_len,
    float scale,
    int window,
    float softcap,
    const std::optional<mx::array>& sinks,
    StepHints hints,
    mx::StreamOrDevice stream) {
  check_pools(q, k_pool, v_pool);
  check_tables(block_tables, query_start, context_len);
  require(std::isfinite(scale), op, "scale must be finite");
  require(window >= 0, op, "window must be 0 (none) or positive");
  require(hints.most_rows >= 0 && hints.positions >= 0, op,
          "most_rows and positions must be 0 (not known) or positive");
  require(std::isfinite(softcap) && softcap >= 0.0f, op, "softcap must be 0 (none) or positive");
  auto s = mx::to_stream(stream);
  std::vector<mx::array> inputs{
      for_kernels(q, s), k_pool, v_pool, for_kernels(block_tables, s), for_kernels(query_start, s),
      for_kernels(context_len, s)};
  if (sinks) {
    require_rank(*sinks, 1, op, "sinks");
    require_size(*sinks, 0, q.shape(1), op, "sinks", "one per query head");
    require(is_kernel_float(sinks->dtype()), op, "sinks must be float32, bfloat16 or float16");
    inputs.push_back(for_kernels(mx::astype(*sinks, mx::float32, s), s));
  }
  return mx::array(
      {q.shape(0), q.shape(1), v_pool.shape(3)},
      q.dtype(),
      std::make_shared<PagedAttention>(s, scale, window, softcap, hints),
      std::move(inputs));
}

bool PagedAttention::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const PagedAttention&>(other);
  return scale_ == o.scale_ && window_ == o.window_ && softcap_ == o.softcap_ &&
      hints_.most_rows == o.hints_.most_rows && hints_.positions == o.hints_.positions;
}

std::vector<mx::Shape> PagedAttention::output_shapes(const std::vector<mx::array>& inputs) {
  return {{inputs[0].shape(0), inputs[0].shape(1), inputs[2].shape(3)}};
}

} // namespace mlxrt
