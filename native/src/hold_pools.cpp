#include "mlxrt/hold_pools.h"

#include "src/validate.h"

namespace mlxrt {

std::vector<mx::array> hold_pools(
    const std::vector<mx::array>& arrays,
    const std::vector<mx::array>& pools,
    mx::StreamOrDevice stream) {
  constexpr const char* op = "hold_pools";
  require(!arrays.empty(), op, "arrays must name at least one array");
  require(!pools.empty(), op, "pools must name at least one pool");
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const auto& array : arrays) {
    shapes.push_back(array.shape());
    dtypes.push_back(array.dtype());
  }
  std::vector<mx::array> inputs = arrays;
  inputs.insert(inputs.end(), pools.begin(), pools.end());
  return mx::array::make_arrays(
      std::move(shapes), dtypes,
      std::make_shared<HoldPools>(mx::to_stream(stream), arrays.size()), inputs);
}

bool HoldPools::is_equivalent(const mx::Primitive& other) const {
  return array_count_ == static_cast<const HoldPools&>(other).array_count_;
}

std::vector<mx::Shape> HoldPools::output_shapes(const std::vector<mx::array>& inputs) {
  std::vector<mx::Shape> shapes;
  for (size_t i = 0; i < array_count_; ++i) {
    shapes.push_back(inputs[i].shape());
  }
  return shapes;
}

} // namespace mlxrt
