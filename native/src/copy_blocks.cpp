#include "mlxrt/copy_blocks.h"

#include "src/validate.h"

namespace mlxrt {

std::vector<mx::array> copy_blocks(
    const std::vector<mx::array>& pools,
    const mx::array& sources,
    const mx::array& destinations,
    mx::StreamOrDevice stream) {
  constexpr const char* op = "copy_blocks";
  require(!pools.empty(), op, "pools must name at least one pool");
  require_rank(sources, 1, op, "sources");
  require_dtype(sources, mx::int32, op, "sources");
  require_rank(destinations, 1, op, "destinations");
  require_dtype(destinations, mx::int32, op, "destinations");
  require_size(destinations, 0, sources.shape(0), op, "destinations", "one per source");
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<mx::array> inputs;
  for (size_t i = 0; i < pools.size(); ++i) {
    const std::string name = "pools[" + std::to_string(i) + "]";
    require(pools[i].ndim() > 0, op, name + " must have at least one axis");
    require_size(pools[i], 0, pools[0].shape(0), op, name.c_str(), "as in pools[0]");
    for (size_t j = 0; j < i; ++j) {
      require(pools[i].id() != pools[j].id(), op,
              name + " is the same array as pools[" + std::to_string(j) + "]");
    }
    shapes.push_back(pools[i].shape());
    dtypes.push_back(pools[i].dtype());
    inputs.push_back(pools[i]);
  }
  auto s = mx::to_stream(stream);
  inputs.push_back(for_kernels(sources, s));
  inputs.push_back(for_kernels(destinations, s));
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::make_shared<CopyBlocks>(s), inputs);
}

std::vector<mx::Shape> CopyBlocks::output_shapes(const std::vector<mx::array>& inputs) {
  std::vector<mx::Shape> shapes;
  for (size_t i = 0; i + 2 < inputs.size(); ++i) {
    shapes.push_back(inputs[i].shape());
  }
  return shapes;
}

} // namespace mlxrt
