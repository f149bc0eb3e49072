#include "cuda/kernel_table.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace mlxrt::cuda {
namespace {

const void* data_of(const std::string& file) {
  for (const Fatbin* entry = fatbins; entry->name; ++entry) {
    if (file == entry->name) {
      return entry->data;
    }
  }
  throw std::runtime_error("this build of mlxrt has no CUDA kernels called " + file);
}

} // namespace

CUfunction find_kernel(int device, const std::string& file, const std::string& name) {
  static std::mutex mutex;
  static auto* modules = new std::map<std::pair<int, std::string>, CUmodule>();
  static auto* functions = new std::map<std::pair<int, std::string>, CUfunction>();
  std::lock_guard lock(mutex);
  auto& function = (*functions)[{device, name}];
  if (!function) {
    auto& module = (*modules)[{device, file}];
    if (!module) {
      check(driver().module_load_data(&module, data_of(file)), "loading CUDA kernels " + file);
    }
    check(driver().module_get_function(&function, module, name.c_str()), "CUDA kernel " + name);
  }
  return function;
}

} // namespace mlxrt::cuda
