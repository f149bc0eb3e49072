// Stands in for MLX's header of the same name: an encoder that prints what it is told.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace MTL {
struct Buffer {};
struct Library {
  std::string name;
};
struct ComputePipelineState {
  std::string name;
};
struct Size {
  Size(size_t x, size_t y, size_t z) : x(x), y(y), z(z) {}
  size_t x, y, z;
};
} // namespace MTL

namespace mlx::core::metal {

class CommandEncoder {
 public:
  void set_compute_pipeline_state(MTL::ComputePipelineState* kernel) {
    std::printf("pipeline %s\n", kernel->name.c_str());
  }
  void set_buffer(const MTL::Buffer* buffer, int index, int64_t = 0) {
    std::printf("buffer %p %d\n", static_cast<const void*>(buffer), index);
  }
  void set_input_array(const array& a, int index, int64_t = 0) {
    std::printf("input %p %d\n", static_cast<const void*>(a.buffer().ptr()), index);
  }
  void set_output_array(array& a, int index, int64_t = 0) {
    std::printf("output %p %d\n", static_cast<const void*>(a.buffer().ptr()), index);
  }
  void register_output_array(const array& a) {
    std::printf("registered %p\n", static_cast<const void*>(a.buffer().ptr()));
  }
  void add_temporary(array a) {
    std::printf("temporary %p %zu\n", static_cast<const void*>(a.buffer().ptr()), a.nbytes());
  }
  template <class T>
  void set_bytes(const T*, int count, int index) {
    std::printf("bytes %zu %d\n", count * sizeof(T), index);
  }
  void set_threadgroup_memory_length(size_t length, int index) {
    std::printf("threadgroup %zu %d\n", length, index);
  }
  void dispatch_threadgroups(MTL::Size groups, MTL::Size threads) {
    std::printf("dispatch %zu %zu %zu by %zu %zu %zu\n", groups.x, groups.y, groups.z, threads.x,
                threads.y, threads.z);
  }
};

class Device {
 public:
  std::string architecture;
  const std::string& get_architecture() const {
    return architecture;
  }
  MTL::Library* get_library(const std::string& name, const std::function<std::string()>& builder) {
    std::printf("library %s %zu\n", name.c_str(), builder().size());
    return new MTL::Library{name};
  }
  MTL::ComputePipelineState* get_kernel(const std::string& name, MTL::Library* library) {
    return new MTL::ComputePipelineState{library->name + " " + name};
  }
};

inline Device& device(mlx::core::Device) {
  static Device one;
  return one;
}
inline CommandEncoder& get_command_encoder(Stream) {
  static CommandEncoder one;
  return one;
}

} // namespace mlx::core::metal
