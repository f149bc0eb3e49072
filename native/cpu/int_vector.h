#pragma once

#include <cstdint>

#include "mlx/array.h"

namespace mlxrt::cpu {

// A one-axis array of integers as a task reads it: pointer and stride, no copy. The array's data
// stays alive until the task ran, which is MLX's promise for every input.
template <class T>
struct IntVector {
  explicit IntVector(const mlx::core::array& a)
      : data(a.data<T>()), size(a.shape(0)), stride(a.strides(0)) {}

  T operator[](int64_t i) const {
    return data[i * stride];
  }

  const T* data;
  int64_t size;
  int64_t stride;
};

} // namespace mlxrt::cpu
