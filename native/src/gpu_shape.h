// What the GPU kernels are told about arrays; for every GPU host.
#pragma once

#include <string>
#include <vector>

#include "kernels/gpu/launch.h"
#include "mlx/array.h"

namespace mlxrt::gpu {

namespace mx = mlx::core;

// Why no GPU kernel attends over these; empty if one does.
std::string refusal(const mx::array& q, const mx::array& k_pool, const mx::array& v_pool);

// `inputs` as PagedAttention has them. Without the hints most_rows, positions and cores.
AttentionShape attention_shape(const std::vector<mx::array>& inputs, float scale, int window,
                               float softcap);

// Throw std::runtime_error where rows or blocks are no whole number of 16 bytes.
WriteParams write_params(const mx::array& k_pool, const mx::array& v_pool);
CopyParams copy_params(const mx::array& pool);

} // namespace mlxrt::gpu
