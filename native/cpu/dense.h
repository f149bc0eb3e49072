#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlxrt/thread_pool.h"
#include "simd/attention.h"

namespace mlxrt::cpu {

inline kernels::ElementType element_type(mlx::core::Dtype dtype) {
  return dtype == mlx::core::float32 ? kernels::ElementType::float32
      : dtype == mlx::core::bfloat16 ? kernels::ElementType::bfloat16
                                     : kernels::ElementType::float16;
}

// Rows of elements as a task reads them: the array's own memory, or a copy where a row's elements do
// not lie side by side. The array's data stays alive until the task ran: MLX's promise.
class Rows {
 public:
  // `a` has one axis (one row) or two.
  explicit Rows(const mlx::core::array& a)
      : data_(a.data<char>()),
        count_(a.ndim() == 2 ? a.shape(0) : 1),
        size_(a.shape(-1)),
        item_(static_cast<int64_t>(a.itemsize())),
        row_stride_(a.ndim() == 2 ? a.strides(0) : 0),
        element_stride_(a.strides(-1)) {}

  int64_t count() const {
    return count_;
  }

  int64_t row_bytes() const {
    return size_ * item_;
  }

  // In the task, before the first row is asked for.
  void gather() {
    if (element_stride_ == 1 || size_ <= 1) {
      return;
    }
    auto copy = std::make_shared<std::vector<char>>(count_ * row_bytes());
    char* to = copy->data();
    for (int64_t r = 0; r < count_; ++r) {
      for (int64_t i = 0; i < size_; ++i, to += item_) {
        std::memcpy(to, data_ + (r * row_stride_ + i * element_stride_) * item_, item_);
      }
    }
    copy_ = std::move(copy);
    data_ = copy_->data();
    row_stride_ = size_;
    element_stride_ = 1;
  }

  const char* operator[](int64_t row) const {
    return data_ + row * row_stride_ * item_;
  }

 private:
  const char* data_;
  int64_t count_, size_, item_, row_stride_, element_stride_;
  std::shared_ptr<const std::vector<char>> copy_;
};

// Elements of all rows below which waking another thread costs more than it gains.
inline constexpr int64_t parallel_elements = 1 << 20;

// body(row) for every row, by several threads where that pays.
template <class F>
void for_rows(int64_t rows, int64_t elements_of_row, F body) {
  if (rows * elements_of_row < parallel_elements || num_threads() == 1) {
    for (int64_t row = 0; row < rows; ++row) {
      body(row);
    }
    return;
  }
  const int64_t pieces = std::min<int64_t>(rows, 4 * num_threads());
  parallel_for(pieces, [&](int64_t piece) {
    for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row) {
      body(row);
    }
  });
}

} // namespace mlxrt::cpu
