#include "cuda/memory.h"

#include <bit>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/driver.h"
#include "mlx/backend/cuda/allocator.h"

namespace mlxrt::cuda {
namespace {

constexpr size_t smallest_bytes = 4096;
// What MLX calls memory of no device; here it is pinned.
constexpr int pinned = -1;

// Buffers by size, a power of two; what is given back is used anew. Leaked, like MLX's own.
class Buffers {
 public:
  mx::cu::CudaBuffer* take(int device, size_t bytes) {
    bytes = std::bit_ceil(std::max(bytes, smallest_bytes));
    {
      std::lock_guard lock(mutex_);
      auto& kept = kept_[{device, bytes}];
      if (!kept.empty()) {
        auto* buffer = kept.back();
        kept.pop_back();
        return buffer;
      }
    }
    if (device == pinned) {
      void* address = nullptr;
      check(driver().mem_alloc_host(&address, bytes), "allocating pinned memory");
      return new mx::cu::CudaBuffer{address, bytes, device};
    }
    CUdeviceptr address = 0;
    check(driver().mem_alloc(&address, bytes), "allocating device memory");
    return new mx::cu::CudaBuffer{reinterpret_cast<void*>(address), bytes, device};
  }

  // `device` is the one that it was taken for.
  void give_back(int device, mx::cu::CudaBuffer* buffer) {
    if (device != pinned && buffer->device < 0) {  // MLX moved it to unified memory, to read it on the host
      driver().mem_free(reinterpret_cast<CUdeviceptr>(buffer->data));
      delete buffer;
      return;
    }
    std::lock_guard lock(mutex_);
    kept_[{buffer->device, buffer->size}].push_back(buffer);
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<int, size_t>, std::vector<mx::cu::CudaBuffer*>> kept_;
};

Buffers& buffers() {
  static auto* all = new Buffers();
  return *all;
}

} // namespace

mx::allocator::Data allocate(int device, size_t bytes) {
  auto* buffer = buffers().take(device, bytes);
  return {mx::allocator::Buffer(buffer), [device](mx::allocator::Buffer b) {
            buffers().give_back(device, static_cast<mx::cu::CudaBuffer*>(b.ptr()));
          }};
}

mx::allocator::Data allocate_pinned(size_t bytes) {
  return allocate(pinned, bytes);
}

mx::array& Scratch::reserve(mx::cu::CommandEncoder& encoder, size_t bytes) {
  if (array_ && array_->nbytes() >= bytes) {
    return *array_;
  }
  if (array_) {
    encoder.add_temporary(*array_);
  }
  bytes = std::bit_ceil(std::max(bytes, smallest_bytes));
  mx::array larger({static_cast<mx::ShapeElem>(bytes / 4)}, mx::float32, nullptr, {});
  larger.set_data(allocate(encoder.device().cuda_device(), bytes));
  const auto* buffer = static_cast<mx::cu::CudaBuffer*>(larger.buffer().ptr());
  check(driver().memset_d8(reinterpret_cast<CUdeviceptr>(buffer->data), 0, bytes), "clearing scratch");
  check(driver().synchronize(), "clearing scratch");
  array_ = std::move(larger);
  return *array_;
}

StreamScratch& scratch_of(const mx::Stream& stream) {
  thread_local std::map<int, StreamScratch> all;
  return all[stream.index];
}

} // namespace mlxrt::cuda
