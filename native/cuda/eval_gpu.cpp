// eval_gpu of every op on CUDA: what launch.h plans becomes nodes of MLX's CUDA graph.

#include <numeric>
#include <stdexcept>

#include "cuda/kernel_table.h"
#include "cuda/memory.h"
#include "mlx/backend/cuda/device.h"
#include "mlx/backend/cuda/utils.h"
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

namespace cu = mx::cu;
using cuda::find_kernel;

constexpr unsigned int threads = 128;
constexpr const char* moving_kernels = "moving";

void* address(const mx::array& a) {
  return mx::gpu_ptr<void>(a);
}

// For every graph node: kernels move 16 bytes at a time.
void check_layout(const std::vector<mx::array>& arrays, const char* op) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    const auto& a = arrays[i];
    const bool by_vectors = a.dtype() != mx::int32 && a.dtype() != mx::int64;
    if (!a.flags().row_contiguous || (by_vectors && a.size() > 0 && a.offset() % 16)) {
      throw std::runtime_error(
          "[" + std::string(op) + "] array " + std::to_string(i) +
          " is not row-contiguous, or begins at a byte that is no multiple of 16");
    }
  }
}

cu::CommandEncoder& encoder_of(const mx::Stream& stream) {
  auto& encoder = cu::get_command_encoder(stream);
  encoder.device().make_current();
  return encoder;
}

void add_node(cu::CommandEncoder& encoder, CUfunction kernel, dim3 grid, unsigned int thread_count,
              int threadgroup_bytes, std::vector<void*> arguments) {
  encoder.add_kernel_node_raw(kernel, grid, dim3(thread_count), dim3(),
                              static_cast<uint32_t>(threadgroup_bytes), arguments.data());
}

dim3 dim3_of(const gpu::Grid& grid) {
  return dim3(static_cast<unsigned int>(grid.x), static_cast<unsigned int>(grid.y),
              static_cast<unsigned int>(grid.z));
}

// Where the partial results of a step's launches lie.
struct Partials {
  char* outputs = nullptr;
  char* logarithms = nullptr;
  char* arrivals = nullptr;
};

// The kernel of one of the fused ops, over the addresses of its buffers in their order.
template <class Params>
void add_row_kernel(cu::CommandEncoder& encoder, gpu::RowLaunch<Params> launch,
                    std::vector<void*> addresses) {
  if (launch.grid.x == 0 || launch.grid.y == 0) {
    return;
  }
  std::vector<void*> arguments;
  for (auto& one : addresses) {
    arguments.push_back(&one);
  }
  arguments.push_back(&launch.params);
  const int device = encoder.device().cuda_device();
  add_node(encoder, find_kernel(device, launch.key.file(), launch.key.name()),
           dim3_of(launch.grid), launch.threads, launch.threadgroup_bytes, arguments);
}

// Takes the output's memory from an input where nobody else needs that. Attention's queries have been
// read by all threadgroups of their tile before the last one writes a row of it; add_rms_norm's
// threads each read and write their own vectors.
void set_output(cu::CommandEncoder& encoder, const mx::array& input, mx::array& output) {
  if (input.is_donatable() && input.nbytes() == output.nbytes()) {
    output.copy_shared_buffer(input);
  } else {
    output.set_data(cuda::allocate(encoder.device().cuda_device(), output.nbytes()));
  }
}

std::vector<Partials> reserve_partials(cu::CommandEncoder& encoder, const mx::Stream& stream,
                                       const std::vector<gpu::AttentionLaunch>& launches) {
  int64_t floats = 0;
  int64_t counters = 0;
  for (const auto& launch : launches) {
    floats += launch.partial_vectors * (launch.key.head_dim + 4);
    counters += launch.arrivals;
  }
  std::vector<Partials> partials(launches.size());
  if (counters == 0) {
    return partials;
  }
  auto& scratch = cuda::scratch_of(stream);
  auto& results = scratch.partials.reserve(encoder, static_cast<size_t>(floats) * 4);
  auto& arrivals = scratch.arrivals.reserve(encoder, static_cast<size_t>(counters) * 4);
  encoder.set_output_array(results);
  encoder.set_output_array(arrivals);
  char* at = static_cast<char*>(address(results));
  char* counter = static_cast<char*>(address(arrivals));
  for (size_t i = 0; i < launches.size(); ++i) {
    const int64_t outputs = launches[i].partial_vectors * launches[i].key.head_dim * 4;
    partials[i] = {at, at + outputs, counter};
    at += outputs + launches[i].partial_vectors * 16;
    counter += launches[i].arrivals * 4;
  }
  return partials;
}

} // namespace

void KVWrite::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  check_layout(inputs, "kv_write");
  auto& encoder = encoder_of(stream());
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  count_evaluation(Op::kv_write);
  const auto rows = static_cast<unsigned int>(inputs[4].shape(0));
  if (rows == 0) {
    return;
  }
  WriteParams params = gpu::write_params(inputs[0], inputs[1]);
  for (size_t i = 2; i < inputs.size(); ++i) {
    encoder.set_input_array(inputs[i]);
  }
  encoder.set_output_array(outputs[0]);
  encoder.set_output_array(outputs[1]);
  void *keys = address(inputs[2]), *values = address(inputs[3]), *slots = address(inputs[4]);
  void *k_pool = address(outputs[0]), *v_pool = address(outputs[1]);
  add_node(encoder, find_kernel(encoder.device().cuda_device(), moving_kernels, "kv_write"),
           dim3(rows), threads, 0, {&keys, &values, &slots, &k_pool, &v_pool, &params});
}

void CopyBlocks::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  check_layout(inputs, "copy_blocks");
  auto& encoder = encoder_of(stream());
  const int device = encoder.device().cuda_device();
  const auto& sources = inputs[outputs.size()];
  const auto& destinations = inputs[outputs.size() + 1];
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  count_evaluation(Op::copy_blocks);
  const auto pairs = static_cast<unsigned int>(sources.shape(0));
  if (pairs == 0) {
    return;
  }
  const CUfunction read = find_kernel(device, moving_kernels, "copy_blocks_read");
  const CUfunction write = find_kernel(device, moving_kernels, "copy_blocks_write");
  void *from = address(sources), *to = address(destinations);
  for (auto& pool : outputs) {
    CopyParams params = gpu::copy_params(pool);
    if (params.block_vectors == 0) {
      continue;
    }
    auto& scratch = cuda::scratch_of(stream()).blocks.reserve(
        encoder, static_cast<size_t>(pairs) * params.block_vectors * 16);
    const dim3 grid((params.block_vectors + threads - 1) / threads, pairs);
    void *pool_at = address(pool), *scratch_at = address(scratch);
    encoder.set_input_array(sources);
    encoder.set_input_array(destinations);
    encoder.set_output_array(pool);
    encoder.set_output_array(scratch);
    add_node(encoder, read, grid, threads, 0, {&pool_at, &from, &to, &scratch_at, &params});
    encoder.set_input_array(sources);
    encoder.set_input_array(destinations);
    encoder.set_output_array(scratch);
    encoder.set_output_array(pool);
    add_node(encoder, write, grid, threads, 0, {&scratch_at, &from, &to, &pool_at, &params});
  }
}

void HoldPools::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& encoder = encoder_of(stream());
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
    encoder.set_input_array(inputs[i]);
  }
  for (size_t i = outputs.size(); i < inputs.size(); ++i) {
    encoder.set_output_array(inputs[i]);
  }
  count_evaluation(Op::hold_pools);
  // Dependencies are a node's, so there is one, which does nothing.
  add_node(encoder, find_kernel(encoder.device().cuda_device(), moving_kernels, "hold_pools"),
           dim3(1), 1, 0, {});
}

void PagedAttention::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  check_layout(inputs, "paged_attention");
  if (const auto reason = gpu::refusal(inputs[0], inputs[1], inputs[2]); !reason.empty()) {
    throw std::runtime_error("[paged_attention] " + reason + "; run with `--attention gather`");
  }
  auto& encoder = encoder_of(stream());
  const int device = encoder.device().cuda_device();
  auto shape = gpu::attention_shape(inputs, scale_, window_, softcap_);
  shape.most_rows = hints_.most_rows;
  shape.positions = hints_.positions;
  static const int cores = cuda::core_count(device);
  shape.cores = cores;
  const auto launches = gpu::plan_attention(shape);
  set_output(encoder, inputs[0], output);
  count_evaluation(Op::paged_attention);
  if (launches.empty()) {
    return;
  }
  for (const auto& input : inputs) {
    encoder.set_input_array(input);
  }
  // The pools as outputs: a later write into them then waits for this read.
  encoder.set_output_array(inputs[1]);
  encoder.set_output_array(inputs[2]);
  encoder.set_output_array(output);
  const auto partials = reserve_partials(encoder, stream(), launches);
  std::vector<void*> addresses;
  for (size_t i = 0; i < 6; ++i) {
    addresses.push_back(address(inputs[i]));
  }
  addresses.push_back(inputs.size() > 6 ? address(inputs[6]) : nullptr);
  addresses.push_back(address(output));
  const auto group = encoder.concurrent_context();
  for (size_t i = 0; i < launches.size(); ++i) {
    auto launch = launches[i];
    auto mine = addresses;
    mine.insert(mine.end(), {partials[i].outputs, partials[i].logarithms, partials[i].arrivals});
    std::vector<void*> arguments;
    for (auto& one : mine) {
      arguments.push_back(&one);
    }
    arguments.push_back(&launch.params);
    const auto kernel = find_kernel(device, launch.key.file(), launch.key.name());
    add_node(encoder, kernel, dim3_of(launch.grid), launch.threads, launch.threadgroup_bytes,
             arguments);
  }
}

void NormRopeWrite::eval_gpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  const auto shape = gpu::norm_rope_shape(inputs, options_);
  gpu::require_kernel(shape, "norm_rope_write");
  check_layout(inputs, "norm_rope_write");
  auto& encoder = encoder_of(stream());
  outputs[0].set_data(cuda::allocate(encoder.device().cuda_device(), outputs[0].nbytes()));
  outputs[1].copy_shared_buffer(inputs[k_pool]);
  outputs[2].copy_shared_buffer(inputs[v_pool]);
  count_evaluation(Op::norm_rope_write);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (i != k_pool && i != v_pool) {
      encoder.set_input_array(inputs[i]);
    }
  }
  for (auto& output : outputs) {
    encoder.set_output_array(output);
  }
  size_t norm = first_norm;
  const auto next_norm = [&](bool is_there) {
    return is_there ? address(inputs[norm++]) : nullptr;
  };
  void* q_norm = next_norm(options_.norms_queries);
  void* k_norm = next_norm(options_.norms_keys);
  add_row_kernel(encoder, gpu::plan_norm_rope(shape),
                 {address(inputs[qkv]), address(inputs[positions]),
                  address(inputs[inverse_frequencies]), address(inputs[slots]), q_norm, k_norm,
                  address(outputs[0]), address(outputs[1]), address(outputs[2])});
}

void AddRMSNorm::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto shape = gpu::row_shape(inputs[0], eps_);
  gpu::require_kernel(shape, "add_rms_norm");
  check_layout(inputs, "add_rms_norm");
  auto& encoder = encoder_of(stream());
  for (size_t i = 0; i < outputs.size(); ++i) {
    set_output(encoder, inputs[i], outputs[i]);
  }
  count_evaluation(Op::add_rms_norm);
  for (const auto& input : inputs) {
    encoder.set_input_array(input);
  }
  for (auto& output : outputs) {
    encoder.set_output_array(output);
  }
  add_row_kernel(encoder, gpu::plan_add_norm(shape),
                 {address(inputs[0]), address(inputs[1]), address(inputs[2]), address(outputs[0]),
                  address(outputs[1])});
}

void SwiGLU::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  const auto shape = gpu::row_shape(output);
  gpu::require_kernel(shape, "swiglu");
  check_layout(inputs, "swiglu");
  auto& encoder = encoder_of(stream());
  output.set_data(cuda::allocate(encoder.device().cuda_device(), output.nbytes()));
  count_evaluation(Op::swiglu);
  encoder.set_input_array(inputs[0]);
  encoder.set_output_array(output);
  add_row_kernel(encoder, gpu::plan_gate(shape), {address(inputs[0]), address(output)});
}

void Sample::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& encoder = encoder_of(stream());
  const int device = encoder.device().cuda_device();
  for (auto& output : outputs) {
    output.set_data(cuda::allocate(device, output.nbytes()));
  }
  count_evaluation(Op::sample);
  const auto shape = gpu::sample_shape(inputs[0], inputs[1]);
  const auto launches = gpu::plan_sample(shape);
  if (launches.empty()) {
    return;
  }
  const auto scratch_bytes = gpu::sample_scratch_bytes(shape);
  auto& scratch = cuda::scratch_of(stream()).sampling.reserve(
      encoder, std::accumulate(scratch_bytes.begin(), scratch_bytes.end(), size_t{0}));
  // As SampleArray names them.
  std::vector<void*> addresses = {address(inputs[0]), address(inputs[1]), address(outputs[0]),
                                  address(outputs[1]), address(outputs[2])};
  char* next = static_cast<char*>(address(scratch));
  for (const int64_t bytes : scratch_bytes) {
    addresses.push_back(next);
    next += bytes;
  }
  for (auto launch : launches) {
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
    }
    encoder.set_output_array(scratch);  // so that each launch follows the one before
    for (auto& output : outputs) {
      encoder.set_output_array(output);
    }
    std::vector<void*> arguments;
    for (const auto array : launch.arrays) {
      arguments.push_back(&addresses[static_cast<size_t>(array)]);
    }
    arguments.push_back(&launch.params);
    add_node(encoder, find_kernel(device, launch.file(), launch.key.name()),
             dim3_of(launch.grid), launch.threads, launch.threadgroup_bytes, arguments);
  }
}

} // namespace mlxrt
