#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// What the caller knows of a step and a GPU would have to be asked; 0: not known. Speed alone depends
// on it, and on a GPU the last bits.
struct StepHints {
  int most_rows = 0;      // rows of the sequence that has most
  int64_t positions = 0;  // that the rows see, each sequence's counted once
};

// Causal attention of T query rows of S sequences over their blocks of the pools.
//
//   q            [T, num_q_heads, key_dim] float32, bfloat16 or float16
//   k_pool       [num_blocks, block_size, num_kv_heads, key_dim], one of the same dtypes
//   v_pool       [num_blocks, block_size, num_kv_heads, value_dim], k_pool's dtype
//   block_tables [S, max_blocks] int32; entry b holds the positions [b * block_size, ...)
//   query_start  [S + 1] int32: rows [query_start[s], query_start[s + 1]) belong to sequence s
//   context_len  [S] int32: positions of s, this step's rows included; row r stands at position
//                context_len[s] - (query_start[s + 1] - r)
//   sinks        [num_q_heads]: a logit per head that takes weight and gives no value
//   returns      [T, num_q_heads, value_dim] in q's dtype; rows from query_start[S] on are zero
//
// key_dim and value_dim are multiples of 8. Accumulation is in float32. A row at position p sees
// the positions c <= p, with a window w > 0 only c > p - w; nothing else is read. With a softcap
// c > 0 a score s becomes c * tanh(s / c). A row's result depends on its own query, position and
// visible positions alone: not on its batch mates, on how a prompt was cut into chunks, or on
// threads. On a GPU its last bits do depend on the step: contexts are cut so as to fill the device.
mx::array paged_attention(
    const mx::array& q,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& block_tables,
    const mx::array& query_start,
    const mx::array& context_len,
    float scale,
    int window = 0,
    float softcap = 0.0f,
    const std::optional<mx::array>& sinks = std::nullopt,
    StepHints hints = {},
    mx::StreamOrDevice stream = {});

class PagedAttention : public mx::UnaryPrimitive {
 public:
  PagedAttention(mx::Stream stream, float scale, int window, float softcap, StepHints hints)
      : mx::UnaryPrimitive(stream),
        scale_(scale),
        window_(window),
        softcap_(softcap),
        hints_(hints) {}

  // Inputs: the array arguments in order, sinks last if there are any.
  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::PagedAttention";
  }

 private:
  float scale_;
  int window_;
  float softcap_;
  StepHints hints_;
};

} // namespace mlxrt
