#include "metal/encode.h"

#include <stdexcept>
#include <string>

#include "mlx/allocator.h"
#include "mlx/backend/metal/device.h"
#include "mlx/dtype.h"

namespace mlxrt::metal {
namespace {

constexpr size_t vector_bytes = 16;

void check_layout(const mx::array& array, const char* op, size_t index) {
  if (!array.flags().row_contiguous) {
    throw std::runtime_error(
        "[" + std::string(op) + "] array " + std::to_string(index) + " is not row-contiguous");
  }
  // Tables and lengths are read number by number.
  const bool by_vectors = array.dtype() != mx::int32 && array.dtype() != mx::int64;
  if (by_vectors && array.size() > 0 && array.offset() % vector_bytes) {
    throw std::runtime_error(
        "[" + std::string(op) + "] array " + std::to_string(index) +
        " begins at a byte that is no multiple of 16");
  }
}

void bind(mx::metal::CommandEncoder& encoder, mx::array& array, Use use, int index) {
  switch (use) {
    case Use::absent:
      // Bound, so that the parameter is one; the kernel does not touch it, and no order follows.
      encoder.set_buffer(static_cast<const MTL::Buffer*>(array.buffer().ptr()), index);
      break;
    case Use::read:
      encoder.set_input_array(array, index);
      break;
    case Use::read_in_place:
      encoder.set_input_array(array, index);
      encoder.register_output_array(array);
      break;
    case Use::write:
      encoder.set_output_array(array, index);
      break;
  }
}

} // namespace

int core_count(const mx::Stream& stream) {
  return cores_of(mx::metal::device(stream.device).get_architecture());
}

void encode(const Plan& plan, const std::vector<mx::array>& arrays, const mx::Stream& stream,
            const char* op) {
  auto& device = mx::metal::device(stream.device);
  auto& encoder = mx::metal::get_command_encoder(stream);
  std::vector<mx::array> all = arrays;
  for (size_t i = 0; i < all.size(); ++i) {
    check_layout(all[i], op, i);
  }
  for (const int64_t bytes : plan.scratch_bytes) {
    mx::array scratch({static_cast<mx::ShapeElem>((bytes + 3) / 4)}, mx::float32, nullptr, {});
    scratch.set_data(mx::allocator::malloc(scratch.nbytes()));
    // Only ever what was allocated here: it takes a buffer out of the tracking of fences.
    encoder.add_temporary(scratch);
    all.push_back(scratch);
  }
  for (const auto& dispatch : plan.dispatches) {
    // MathMode::Safe, MLX's default: the kernels rely on infinities and pass NaN on.
    auto* library = device.get_library(
        "mlxrt_" + dispatch.library, [&dispatch] { return dispatch.text(); });
    encoder.set_compute_pipeline_state(device.get_kernel(dispatch.kernel, library));
    int index = 0;
    for (const auto& binding : dispatch.buffers) {
      bind(encoder, all.at(binding.array), binding.use, index++);
    }
    encoder.set_bytes(dispatch.params.data(), static_cast<int>(dispatch.params.size()), index);
    encoder.set_threadgroup_memory_length(dispatch.threadgroup_bytes, 0);
    encoder.dispatch_threadgroups(
        MTL::Size(dispatch.grid.x, dispatch.grid.y, dispatch.grid.z),
        MTL::Size(dispatch.threads, 1, 1));
  }
}

void hold(const std::vector<mx::array>& arrays, const std::vector<mx::array>& pools,
          const mx::Stream& stream) {
  auto& encoder = mx::metal::get_command_encoder(stream);
  for (const auto& array : arrays) {
    encoder.set_input_array(array, 0);
  }
  for (const auto& pool : pools) {
    encoder.register_output_array(pool);
  }
}

} // namespace mlxrt::metal
