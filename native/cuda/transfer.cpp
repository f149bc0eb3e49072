#include "cuda/transfer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/kernel_table.h"
#include "cuda/memory.h"
#include "mlx/backend/cuda/device.h"
#include "mlx/backend/cuda/utils.h"
#include "mlx/ops.h"

namespace mlxrt::cuda {
namespace {

constexpr size_t alignment = 16;
constexpr unsigned int threads = 128;
constexpr unsigned int most_groups = 64;

size_t aligned(size_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// Bytes, of which nobody sees the type.
mx::array bytes_array(size_t bytes) {
  return mx::array({static_cast<mx::ShapeElem>(aligned(bytes))}, mx::uint8, nullptr, {});
}

// Adds the kernel `name`, which moves `count` pieces from one buffer to the other.
void add_copy(const mx::Stream& stream, const char* name, const mx::array& from,
              const mx::array& to, size_t pieces) {
  auto& encoder = mx::cu::get_command_encoder(stream);
  encoder.set_input_array(from);
  encoder.set_output_array(to);
  void* source = mx::gpu_ptr<void>(from);
  void* destination = mx::gpu_ptr<void>(to);
  auto count = static_cast<unsigned int>(pieces);
  void* arguments[] = {&source, &destination, &count};
  const auto groups = std::clamp((count + threads - 1) / threads, 1u, most_groups);
  const auto kernel = find_kernel(encoder.device().cuda_device(), "moving", name);
  encoder.add_kernel_node_raw(kernel, dim3(groups), dim3(threads), dim3(), 0, arguments);
}

} // namespace

std::vector<mx::array> upload(const std::vector<HostNumbers>& numbers) {
  size_t bytes = 0;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<size_t> sizes;
  for (const auto& each : numbers) {
    size_t size = mx::size_of(each.dtype);
    for (auto axis : each.shape) {
      size *= static_cast<size_t>(axis);
    }
    shapes.push_back(each.shape);
    dtypes.push_back(each.dtype);
    sizes.push_back(size);
    bytes += aligned(size);
  }
  auto staged = bytes_array(bytes);
  staged.set_data(allocate_pinned(staged.nbytes()));
  char* at = static_cast<char*>(mx::gpu_ptr<void>(staged));
  for (size_t i = 0; i < numbers.size(); ++i) {
    std::memcpy(at, numbers[i].data, sizes[i]);
    at += aligned(sizes[i]);
  }
  const auto stream = mx::default_stream(mx::Device::gpu);
  return mx::array::make_arrays(std::move(shapes), dtypes,
                                std::make_shared<Upload>(stream, std::move(staged)), {});
}

mx::array to_host(const mx::array& a) {
  const auto stream = mx::default_stream(mx::Device::gpu);
  return mx::array(a.shape(), a.dtype(), std::make_shared<ToHost>(stream),
                   {mx::contiguous(a, false, stream)});
}

void Upload::eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::runtime_error("[upload] there is nothing to upload to a CPU");
}

void Upload::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) {
  auto& encoder = mx::cu::get_command_encoder(stream());
  encoder.device().make_current();
  auto whole = bytes_array(staged_.nbytes());
  whole.set_data(allocate(encoder.device().cuda_device(), whole.nbytes()));
  add_copy(stream(), "copy_vectors", staged_, whole, whole.nbytes() / alignment);
  encoder.add_temporary(staged_);
  size_t offset = 0;
  for (auto& output : outputs) {
    const mx::array::Flags flags{true, true, output.ndim() < 2};
    output.copy_shared_buffer(whole, output.strides(), flags, output.size(),
                              static_cast<int64_t>(offset / output.itemsize()));
    offset += aligned(output.nbytes());
  }
}

void ToHost::eval_cpu(const std::vector<mx::array>&, mx::array&) {
  throw std::runtime_error("[to_host] a CPU's arrays are the host's already");
}

void ToHost::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  auto& encoder = mx::cu::get_command_encoder(stream());
  encoder.device().make_current();
  output.set_data(allocate_pinned(aligned(output.nbytes())));
  add_copy(stream(), "copy_bytes", inputs[0], output, output.nbytes());
}

} // namespace mlxrt::cuda
