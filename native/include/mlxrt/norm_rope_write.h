#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

struct HeadCounts {
  int q = 0;
  int kv = 0;
};

// RMS norm of each query and key head, rotary embedding, and the write of keys and values to their
// slots of the pools, in place: what stands between a merged projection and attention.
//
//   qkv                 [T, (heads.q + 2 * heads.kv) * head_dim] float32, bfloat16 or float16
//   q_norm, k_norm      [head_dim] of qkv's dtype: weights; none: no norm
//   positions           [T] int32
//   inverse_frequencies [dims / 2] float32: pair i turns by positions[t] * scale * each; only the
//                       first `dims` entries of a head do
//   k_pool, v_pool      [num_blocks, block_size, heads.kv, head_dim] float32, bfloat16 or float16
//   slots               [T] int64, as for kv_write
//   returns             queries [T, heads.q, head_dim] of qkv's dtype, then the pools' new handles
//
// Rounded to qkv's dtype where mx.fast.rms_norm and mx.fast.rope do it on the same device.
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
    mx::StreamOrDevice stream = {});

class NormRopeWrite : public mx::Primitive {
 public:
  struct Options {
    HeadCounts heads;
    float eps = 0.0f;
    float scale = 1.0f;
    bool traditional = false;
    bool norms_queries = false;
    bool norms_keys = false;
  };

  // Places of the inputs; the norms' weights follow, those that there are.
  enum Input { qkv, positions, inverse_frequencies, slots, k_pool, v_pool, first_norm };

  NormRopeWrite(mx::Stream stream, const Options& options)
      : mx::Primitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::NormRopeWrite";
  }

 private:
  Options options_;
};

} // namespace mlxrt
