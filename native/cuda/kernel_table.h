// The compiled kernels, embedded in the extension.
#pragma once

#include <string>

#include "cuda/driver.h"

namespace mlxrt::cuda {

// A fatbin and its name; the last of the table has neither.
struct Fatbin {
  const char* name;
  const void* data;
};

// Written by the build, see cuda.cmake.
extern const Fatbin fatbins[];

// The kernel `name` of the fatbin `file`, loaded on the device at its first use. The device's context
// must be current. Any thread. Throws std::runtime_error if it has none.
CUfunction find_kernel(int device, const std::string& file, const std::string& name);

} // namespace mlxrt::cuda
