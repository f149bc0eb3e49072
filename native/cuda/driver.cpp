#include "cuda/driver.h"

#include <dlfcn.h>

#include <stdexcept>

#define MLXRT_TEXT_OF(x) #x
#define MLXRT_TEXT(x) MLXRT_TEXT_OF(x)

namespace mlxrt::cuda {
namespace {

template <class Function>
void find(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) {
    throw std::runtime_error(std::string("libcuda.so.1 has no ") + name);
  }
}

Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    throw std::runtime_error(std::string("no CUDA driver: ") + dlerror());
  }
  Driver d{};
  // cuda.h maps some names to versioned ones.
  find(library, d.module_load_data, MLXRT_TEXT(cuModuleLoadData));
  find(library, d.module_get_function, MLXRT_TEXT(cuModuleGetFunction));
  find(library, d.mem_alloc, MLXRT_TEXT(cuMemAlloc));
  find(library, d.mem_alloc_host, MLXRT_TEXT(cuMemAllocHost));
  find(library, d.mem_free, MLXRT_TEXT(cuMemFree));
  find(library, d.memset_d8, MLXRT_TEXT(cuMemsetD8));
  find(library, d.synchronize, MLXRT_TEXT(cuCtxSynchronize));
  find(library, d.get_error_name, MLXRT_TEXT(cuGetErrorName));
  find(library, d.device_get_attribute, MLXRT_TEXT(cuDeviceGetAttribute));
  return d;
}

} // namespace

const Driver& driver() {
  static const Driver loaded = load();
  return loaded;
}

void check(CUresult result, const std::string& what) {
  if (result != CUDA_SUCCESS) {
    const char* name = nullptr;
    driver().get_error_name(result, &name);
    throw std::runtime_error("[" + what + "] " + (name ? name : "unknown CUDA error"));
  }
}

int core_count(int device) {
  int count = 0;
  check(driver().device_get_attribute(&count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
        "core_count");
  return count;
}

} // namespace mlxrt::cuda
