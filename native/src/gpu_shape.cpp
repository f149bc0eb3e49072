#include "src/gpu_shape.h"

#include <stdexcept>

namespace mlxrt::gpu {
namespace {

int element_of(mx::Dtype dtype) {
  return dtype == mx::float32 ? 0 : dtype == mx::float16 ? 1 : 2;
}

// 16-byte vectors in what one index of the axes before `axis` names.
int vectors_from(const mx::array& a, int axis, const char* what) {
  auto bytes = static_cast<int64_t>(a.itemsize());
  for (; axis < static_cast<int>(a.ndim()); ++axis) {
    bytes *= a.shape(axis);
  }
  if (bytes % 16 || bytes / 16 > INT32_MAX) {
    throw std::runtime_error(
        std::string(what) + " of " + std::to_string(bytes) +
        " bytes: the GPU kernels move 16 bytes at a time; run with `--attention gather`");
  }
  return static_cast<int>(bytes / 16);
}

void describe(AttentionShape& shape, const mx::array& q, const mx::array& k_pool) {
  shape.element = element_of(q.dtype());
  shape.head_dim = q.shape(2);
  shape.num_q_heads = q.shape(1);
  shape.num_kv_heads = k_pool.shape(2);
  shape.block_size = k_pool.shape(1);
  shape.num_blocks = k_pool.shape(0);
}

} // namespace

std::string refusal(const mx::array& q, const mx::array& k_pool, const mx::array& v_pool) {
  if (q.dtype() != k_pool.dtype()) {
    return "no kernel for queries and pools of different dtypes";
  }
  if (k_pool.shape(3) != v_pool.shape(3)) {
    return "no kernel for keys and values of different head sizes";
  }
  AttentionShape shape{};
  describe(shape, q, k_pool);
  return why_not(shape);
}

AttentionShape attention_shape(const std::vector<mx::array>& inputs, float scale, int window,
                               float softcap) {
  AttentionShape shape{};
  describe(shape, inputs[0], inputs[1]);
  shape.max_blocks = inputs[3].shape(1);
  shape.num_sequences = inputs[3].shape(0);
  shape.num_rows = inputs[0].shape(0);
  shape.window = window;
  shape.has_sinks = inputs.size() > 6;
  shape.scale = scale;
  shape.softcap = softcap;
  return shape;
}

NormRopeShape norm_rope_shape(const std::vector<mx::array>& inputs,
                              const NormRopeWrite::Options& options) {
  const auto& pool = inputs[NormRopeWrite::k_pool];
  return {.element = element_of(inputs[NormRopeWrite::qkv].dtype()),
          .pool_element = element_of(pool.dtype()),
          .num_rows = inputs[NormRopeWrite::qkv].shape(0),
          .num_q_heads = options.heads.q,
          .num_kv_heads = options.heads.kv,
          .head_dim = pool.shape(3),
          .pairs = inputs[NormRopeWrite::inverse_frequencies].shape(0),
          .num_slots = static_cast<int64_t>(pool.shape(0)) * pool.shape(1),
          .traditional = options.traditional,
          .norms_queries = options.norms_queries,
          .norms_keys = options.norms_keys,
          .eps = options.eps,
          .scale = options.scale};
}

RowShape row_shape(const mx::array& rows, float eps) {
  return {.element = element_of(rows.dtype()),
          .num_rows = rows.shape(0),
          .size = rows.shape(1),
          .eps = eps};
}

SampleShape sample_shape(const mx::array& logits, const mx::array& rules) {
  return {.element = element_of(logits.dtype()),
          .num_rows = logits.shape(0),
          .vocabulary = logits.shape(1),
          .rule_rows = rules.shape(0),
          .is_aligned = logits.offset() % 16 == 0};
}

WriteParams write_params(const mx::array& k_pool, const mx::array& v_pool) {
  const int64_t slots = static_cast<int64_t>(k_pool.shape(0)) * k_pool.shape(1);
  if (slots > INT32_MAX) {
    throw std::runtime_error("[kv_write] no kernel for a pool of more than 2^31 slots");
  }
  return {.key_vectors = vectors_from(k_pool, 2, "[kv_write] a row of keys"),
          .value_vectors = vectors_from(v_pool, 2, "[kv_write] a row of values"),
          .num_slots = static_cast<int>(slots)};
}

CopyParams copy_params(const mx::array& pool) {
  return {.block_vectors = vectors_from(pool, 1, "[copy_blocks] a block"),
          .num_blocks = pool.shape(0)};
}

} // namespace mlxrt::gpu
