// What the GPU kernels are told about arrays; for every GPU host.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/gpu/launch.h"
#include "mlx/array.h"
#include "mlxrt/norm_rope_write.h"

namespace mlxrt::gpu {

namespace mx = mlx::core;

// Why no GPU kernel attends over these; empty if one does.
std::string refusal(const mx::array& q, const mx::array& k_pool, const mx::array& v_pool);

// `inputs` as PagedAttention has them. Without the hints most_rows, positions and cores.
AttentionShape attention_shape(const std::vector<mx::array>& inputs, float scale, int window,
                               float softcap);

// `inputs` as NormRopeWrite has them.
NormRopeShape norm_rope_shape(const std::vector<mx::array>& inputs,
                              const NormRopeWrite::Options& options);

// Of an array [T, N]: what add_rms_norm takes and swiglu gives.
RowShape row_shape(const mx::array& rows, float eps = 0.0f);

SampleShape sample_shape(const mx::array& logits, const mx::array& rules);

// Throws std::runtime_error "[op] reason" if no kernel serves the call.
template <class Shape>
void require_kernel(const Shape& shape, const char* op) {
  if (const auto reason = why_not(shape); !reason.empty()) {
    throw std::runtime_error("[" + std::string(op) + "] " + reason);
  }
}

// Throw std::runtime_error where rows or blocks are no whole number of 16 bytes.
WriteParams write_params(const mx::array& k_pool, const mx::array& v_pool);
CopyParams copy_params(const mx::array& pool);

} // namespace mlxrt::gpu
