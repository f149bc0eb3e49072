#pragma once

#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// Writes row t of keys and values to slot slots[t] = block_id * block_size + offset of the pools,
// in place, and returns handles of the pools that readers must use. A negative slot skips its row.
//
//   k_pool [num_blocks, block_size, num_kv_heads, key_dim], v_pool [.., value_dim], any dtype
//   keys   [T, num_kv_heads, key_dim], cast to k_pool's dtype
//   values [T, num_kv_heads, value_dim], cast to v_pool's dtype
//   slots  [T] int64
//
// Slots of one call must differ from each other. The pools must be row-contiguous.
std::pair<mx::array, mx::array> kv_write(
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& keys,
    const mx::array& values,
    const mx::array& slots,
    mx::StreamOrDevice stream = {});

class KVWrite : public mx::Primitive {
 public:
  explicit KVWrite(mx::Stream stream) : mx::Primitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::KVWrite";
  }
};

} // namespace mlxrt
