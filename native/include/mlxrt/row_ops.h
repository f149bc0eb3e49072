#pragma once

#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlxrt {

namespace mx = mlx::core;

// The residual stream with a layer's output added, and its RMS norm times `weight`.
//
//   x, residual [T, N] float32, bfloat16 or float16; weight [N]; all of one dtype
//   returns     x + residual and the norm of that, both [T, N]
std::pair<mx::array, mx::array> add_rms_norm(
    const mx::array& x,
    const mx::array& residual,
    const mx::array& weight,
    float eps,
    mx::StreamOrDevice stream = {});

// silu(gate) * up of rows that hold both: gate_up [T, 2 * I] float32, bfloat16 or float16, to [T, I].
mx::array swiglu(const mx::array& gate_up, mx::StreamOrDevice stream = {});

// Both are rounded where MLX's own operations on the same device are.

class AddRMSNorm : public mx::Primitive {
 public:
  AddRMSNorm(mx::Stream stream, float eps) : mx::Primitive(stream), eps_(eps) {}

  // Inputs: x, residual, weight.
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::AddRMSNorm";
  }

 private:
  float eps_;
};

class SwiGLU : public mx::UnaryPrimitive {
 public:
  explicit SwiGLU(mx::Stream stream) : mx::UnaryPrimitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override {
    return "mlxrt::SwiGLU";
  }
};

} // namespace mlxrt
