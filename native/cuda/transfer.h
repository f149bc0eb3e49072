// Small arrays to the device and back through pinned memory. MLX's own way is unified memory, which it
// allocates anew for most of them and which moves by page faults.
#pragma once

#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt::cuda {

namespace mx = mlx::core;

// Numbers of the host, row-contiguous.
struct HostNumbers {
  const void* data;
  mx::Shape shape;
  mx::Dtype dtype;
};

// The numbers as arrays, which share one buffer and are moved by one kernel. They are read before this
// returns.
std::vector<mx::array> upload(const std::vector<HostNumbers>& numbers);

// A copy of `a` in memory that the host reads where it lies.
mx::array to_host(const mx::array& a);

class Upload : public mx::Primitive {
 public:
  Upload(mx::Stream stream, mx::array staged) : mx::Primitive(stream), staged_(std::move(staged)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "mlxrt::Upload";
  }

 private:
  mx::array staged_;
};

class ToHost : public mx::UnaryPrimitive {
 public:
  explicit ToHost(mx::Stream stream) : mx::UnaryPrimitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }
  const char* name() const override {
    return "mlxrt::ToHost";
  }
};

} // namespace mlxrt::cuda
