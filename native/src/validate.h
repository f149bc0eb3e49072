#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mlx/array.h"
#include "mlx/dtype.h"
#include "mlx/ops.h"

namespace mlxrt {

namespace mx = mlx::core;

inline std::string shape_text(const mx::array& a) {
  std::ostringstream text;
  text << "[";
  for (int i = 0; i < static_cast<int>(a.ndim()); ++i) {
    text << (i ? ", " : "") << a.shape(i);
  }
  text << "]";
  return text.str();
}

// Throws std::invalid_argument "[op] what" unless the condition holds.
inline void require(bool condition, const char* op, const std::string& what) {
  if (!condition) {
    throw std::invalid_argument("[" + std::string(op) + "] " + what);
  }
}

inline void require_rank(const mx::array& a, int rank, const char* op, const char* name) {
  require(static_cast<int>(a.ndim()) == rank, op,
          std::string(name) + " must have " + std::to_string(rank) + " axes, got shape " +
              shape_text(a));
}

inline void require_dtype(const mx::array& a, mx::Dtype dtype, const char* op, const char* name) {
  if (a.dtype() != dtype) {
    std::ostringstream text;
    text << name << " must be " << dtype << ", got " << a.dtype();
    require(false, op, text.str());
  }
}

inline void require_size(const mx::array& a, int axis, int64_t size, const char* op,
                         const char* name, const char* reason) {
  require(a.shape(axis) == size, op,
          std::string(name) + " has shape " + shape_text(a) + "; axis " + std::to_string(axis) +
              " must be " + std::to_string(size) + " (" + reason + ")");
}

// GPU kernels take arrays without strides; what has none already is not copied.
inline mx::array for_kernels(const mx::array& a, const mx::Stream& stream) {
  // What our own ops make is row-contiguous.
  const bool is_ours =
      a.has_primitive() && std::string_view(a.primitive().name()).starts_with("mlxrt::");
  return stream.device == mx::Device::gpu && !is_ours ? mx::contiguous(a, false, stream) : a;
}

inline bool is_kernel_float(mx::Dtype dtype) {
  return dtype == mx::float32 || dtype == mx::bfloat16 || dtype == mx::float16;
}

} // namespace mlxrt
