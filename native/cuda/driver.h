// The few functions of the CUDA driver that the host needs, found in the library that MLX has loaded.
#pragma once

#include <cuda.h>

#include <string>

namespace mlxrt::cuda {

struct Driver {
  decltype(&cuModuleLoadData) module_load_data;
  decltype(&cuModuleGetFunction) module_get_function;
  decltype(&cuMemAlloc) mem_alloc;
  decltype(&cuMemAllocHost) mem_alloc_host;
  decltype(&cuMemFree) mem_free;
  decltype(&cuMemsetD8) memset_d8;
  decltype(&cuCtxSynchronize) synchronize;
  decltype(&cuGetErrorName) get_error_name;
  decltype(&cuDeviceGetAttribute) device_get_attribute;
};

// Throws std::runtime_error if there is no driver.
const Driver& driver();

// Throws std::runtime_error "[what] CUDA_ERROR_..." unless the call succeeded.
void check(CUresult result, const std::string& what);

// Multiprocessors of a device.
int core_count(int device);

} // namespace mlxrt::cuda
