// eval_gpu of every op on Metal: what the arrays say becomes a plan, the plan is encoded.

#include <stdexcept>

#include "metal/encode.h"
#include "mlx/allocator.h"
#include "mlxrt/copy_blocks.h"
#include "mlxrt/counters.h"
#include "mlxrt/hold_pools.h"
#include "mlxrt/kv_write.h"
#include "mlxrt/norm_rope_write.h"
#include "mlxrt/paged_attention.h"
#include "mlxrt/row_ops.h"
#include "mlxrt/sample.h"
#include "src/gpu_shape.h"

namespace mlxrt {
namespace {

int64_t bytes_from(const mx::array& a, int axis) {
  int64_t bytes = static_cast<int64_t>(a.itemsize());
  for (; axis < static_cast<int>(a.ndim()); ++axis) {
    bytes *= a.shape(axis);
  }
  return bytes;
}

std::vector<mx::array> with_outputs(const std::vector<mx::array>& inputs,
                                    const std::vector<mx::array>& outputs) {
  std::vector<mx::array> arrays = inputs;
  arrays.insert(arrays.end(), outputs.begin(), outputs.end());
  return arrays;
}

} // namespace

void KVWrite::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto& k_pool = inputs[0];
  const metal::WriteShape shape{
      .rows = inputs[4].shape(0),
      .slots = static_cast<int64_t>(k_pool.shape(0)) * k_pool.shape(1),
      .key_bytes = bytes_from(inputs[2], 1),
      .value_bytes = bytes_from(inputs[3], 1)};
  const auto plan = metal::plan_kv_write(shape);
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  metal::encode(plan, with_outputs(inputs, outputs), stream(), "kv_write");
  count_evaluation(Op::kv_write);
}

void CopyBlocks::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  metal::CopyShape shape{
      .pairs = inputs.back().shape(0), .num_blocks = inputs[0].shape(0), .block_bytes = {}};
  for (size_t i = 0; i < outputs.size(); ++i) {
    shape.block_bytes.push_back(bytes_from(inputs[i], 1));
  }
  const auto plan = metal::plan_copy_blocks(shape);
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  metal::encode(plan, with_outputs(inputs, outputs), stream(), "copy_blocks");
  count_evaluation(Op::copy_blocks);
}

void HoldPools::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto pools = inputs.begin() + static_cast<int64_t>(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  metal::hold({inputs.begin(), pools}, {pools, inputs.end()}, stream());
  count_evaluation(Op::hold_pools);
}

void PagedAttention::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  if (const auto reason = gpu::refusal(inputs[0], inputs[1], inputs[2]); !reason.empty()) {
    throw std::runtime_error("[paged_attention] " + reason + "; run with `--attention gather`");
  }
  auto shape = gpu::attention_shape(inputs, scale_, window_, softcap_);
  shape.most_rows = hints_.most_rows;
  shape.positions = hints_.positions;
  static const int cores = metal::core_count(stream());
  shape.cores = cores;
  const auto plan = metal::plan_paged_attention(shape);
  if (plan.dispatches.empty() && output.size() > 0) {
    throw std::runtime_error("[paged_attention] the GPU kernels serve no step without sequences");
  }
  output.set_data(mx::allocator::malloc(output.nbytes()));
  metal::encode(plan, with_outputs(inputs, {output}), stream(), "paged_attention");
  count_evaluation(Op::paged_attention);
}

void NormRopeWrite::eval_gpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  const auto shape = gpu::norm_rope_shape(inputs, options_);
  gpu::require_kernel(shape, "norm_rope_write");
  const auto plan = metal::plan_norm_rope_write(shape);
  outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
  outputs[1].copy_shared_buffer(inputs[k_pool]);
  outputs[2].copy_shared_buffer(inputs[v_pool]);
  metal::encode(plan, with_outputs(inputs, outputs), stream(), "norm_rope_write");
  count_evaluation(Op::norm_rope_write);
}

void AddRMSNorm::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto shape = gpu::row_shape(inputs[0], eps_);
  gpu::require_kernel(shape, "add_rms_norm");
  for (auto& output : outputs) {
    output.set_data(mx::allocator::malloc(output.nbytes()));
  }
  metal::encode(metal::plan_add_rms_norm(shape), with_outputs(inputs, outputs), stream(),
                "add_rms_norm");
  count_evaluation(Op::add_rms_norm);
}

void SwiGLU::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  const auto shape = gpu::row_shape(output);
  gpu::require_kernel(shape, "swiglu");
  output.set_data(mx::allocator::malloc(output.nbytes()));
  metal::encode(metal::plan_swiglu(shape), with_outputs(inputs, {output}), stream(), "swiglu");
  count_evaluation(Op::swiglu);
}

void Sample::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (auto& output : outputs) {
    output.set_data(mx::allocator::malloc(output.nbytes()));
  }
  const auto shape = gpu::sample_shape(inputs[0], inputs[1]);
  metal::encode(metal::plan_sample(shape), with_outputs(inputs, outputs), stream(), "sample");
  count_evaluation(Op::sample);
}

} // namespace mlxrt
