#include "mlxrt/kv_write.h"

#include "mlx/ops.h"
#include "src/validate.h"

namespace mlxrt {
namespace {

constexpr const char* op = "kv_write";

void check_rows(const mx::array& rows, const mx::array& pool, int64_t count, const char* name,
                const char* pool_name) {
  require_rank(rows, 3, op, name);
  const std::string of_pool = std::string("as in ") + pool_name;
  require_size(rows, 0, count, op, name, "one row per slot");
  require_size(rows, 1, pool.shape(2), op, name, of_pool.c_str());
  require_size(rows, 2, pool.shape(3), op, name, of_pool.c_str());
}

} // namespace

std::pair<mx::array, mx::array> kv_write(
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& keys,
    const mx::array& values,
    const mx::array& slots,
    mx::StreamOrDevice stream) {
  require_rank(k_pool, 4, op, "k_pool");
  require_rank(v_pool, 4, op, "v_pool");
  for (int axis = 0; axis < 3; ++axis) {
    require_size(v_pool, axis, k_pool.shape(axis), op, "v_pool", "as in k_pool");
  }
  require_rank(slots, 1, op, "slots");
  require_dtype(slots, mx::int64, op, "slots");
  check_rows(keys, k_pool, slots.shape(0), "keys", "k_pool");
  check_rows(values, v_pool, slots.shape(0), "values", "v_pool");
  auto s = mx::to_stream(stream);
  auto pools = mx::array::make_arrays(
      {k_pool.shape(), v_pool.shape()},
      {k_pool.dtype(), v_pool.dtype()},
      std::make_shared<KVWrite>(s),
      {k_pool,
       v_pool,
       for_kernels(mx::astype(keys, k_pool.dtype(), s), s),
       for_kernels(mx::astype(values, v_pool.dtype(), s), s),
       for_kernels(slots, s)});
  return {pools[0], pools[1]};
}

std::vector<mx::Shape> KVWrite::output_shapes(const std::vector<mx::array>& inputs) {
  return {inputs[0].shape(), inputs[1].shape()};
}

} // namespace mlxrt
