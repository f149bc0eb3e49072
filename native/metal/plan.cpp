#include "metal/plan.h"

#include <stdexcept>

#include "metal/text.h"

namespace mlxrt::metal {
namespace {

constexpr int64_t vector_bytes = 16;

template <class Params>
std::vector<uint8_t> bytes_of(const Params& params) {
  const auto* first = reinterpret_cast<const uint8_t*>(&params);
  return {first, first + sizeof(Params)};
}

int vectors(int64_t bytes, const char* what) {
  if (bytes % vector_bytes || bytes / vector_bytes > INT32_MAX) {
    throw std::runtime_error(
        std::string(what) + " of " + std::to_string(bytes) +
        " bytes: the GPU kernels move 16 bytes at a time");
  }
  return static_cast<int>(bytes / vector_bytes);
}

int add_scratch(Plan& plan, int first, int64_t bytes) {
  plan.scratch_bytes.push_back(bytes);
  return first + static_cast<int>(plan.scratch_bytes.size()) - 1;
}

} // namespace

std::string Dispatch::text() const {
  return kernel_text(file, constants);
}

int cores_of(std::string_view architecture) {
  switch (architecture.empty() ? '\0' : architecture.back()) {
    case 'p':  // of phones: 5 or 6
      return 6;
    case 'g':  // M1 to M5: 7 to 10
      return 10;
    case 'd':  // Ultra: 48 to 80
      return 64;
    default:  // 's', Pro and Max: 14 to 40
      return 32;
  }
}

Plan plan_paged_attention(const gpu::AttentionShape& shape) {
  if (const auto reason = gpu::why_not(shape); !reason.empty()) {
    throw std::runtime_error(reason);
  }
  enum { q, k_pool, v_pool, tables, query_start, context_len, sinks_or_output };
  const int sinks = sinks_or_output;
  const int output = sinks_or_output + shape.has_sinks;
  const Binding sink_values{sinks, shape.has_sinks ? Use::read : Use::absent};
  Plan plan;
  for (const auto& launch : gpu::plan_attention(shape)) {
    Binding outputs{q, Use::absent}, logarithms{q, Use::absent};
    const bool in_parts = launch.params.max_parts > 1;
    if (in_parts) {
      const int64_t count = launch.partial_vectors;
      outputs = {add_scratch(plan, output + 1, 4 * count * shape.head_dim), Use::write};
      logarithms = {add_scratch(plan, output + 1, 4 * count), Use::write};
    }
    const Binding arrivals{q, Use::absent};
    Dispatch attend{launch.key.name(), launch.key.name(), "attention.h", launch.key.constants()};
    attend.buffers = {
        {q, Use::read}, {k_pool, Use::read_in_place}, {v_pool, Use::read_in_place},
        {tables, Use::read}, {query_start, Use::read}, {context_len, Use::read}, sink_values,
        {output, Use::write}, outputs, logarithms, arrivals};
    attend.params = bytes_of(launch.params);
    attend.grid = launch.grid;
    attend.threads = launch.threads;
    attend.threadgroup_bytes = (launch.threadgroup_bytes + 15) / 16 * 16;
    plan.dispatches.push_back(attend);
    if (in_parts) {
      Dispatch merge = attend;
      merge.kernel = launch.key.merge_name();
      merge.buffers = {
          {query_start, Use::read}, {context_len, Use::read}, sink_values,
          {outputs.array, Use::read}, {logarithms.array, Use::read}, {output, Use::write}};
      merge.grid = launch.merge_grid;
      plan.dispatches.push_back(merge);
    }
  }
  return plan;
}

Plan plan_kv_write(const WriteShape& shape) {
  enum { k_pool, v_pool, keys, values, slots, new_k_pool, new_v_pool };
  Plan plan;
  if (shape.rows == 0) {
    return plan;
  }
  if (shape.slots > INT32_MAX) {
    throw std::runtime_error("pools of more than 2^31 slots");
  }
  const WriteParams params{
      vectors(shape.key_bytes, "a row of keys"), vectors(shape.value_bytes, "a row of values"),
      static_cast<int>(shape.slots)};
  Dispatch write{"kv_write", "kv_write", "kv_write.h", ""};
  write.buffers = {{keys, Use::read},
                   {values, Use::read},
                   {slots, Use::read},
                   {new_k_pool, Use::write},
                   {new_v_pool, Use::write}};
  write.params = bytes_of(params);
  write.grid = {static_cast<int>(shape.rows), 1, 1};
  plan.dispatches.push_back(write);
  return plan;
}

Plan plan_copy_blocks(const CopyShape& shape) {
  const int pools = static_cast<int>(shape.block_bytes.size());
  const int sources = pools, destinations = pools + 1, outputs = pools + 2;
  Plan plan;
  if (shape.pairs == 0) {
    return plan;
  }
  for (int pool = 0; pool < pools; ++pool) {
    const int64_t bytes = shape.block_bytes[pool];
    const CopyParams params{vectors(bytes, "a block"), static_cast<int>(shape.num_blocks)};
    const int scratch = add_scratch(plan, outputs + pools, shape.pairs * bytes);
    Dispatch read{"copy_blocks_read", "copy_blocks", "copy_blocks.h", ""};
    read.buffers = {{outputs + pool, Use::read_in_place},
                    {sources, Use::read},
                    {destinations, Use::read},
                    {scratch, Use::write}};
    read.params = bytes_of(params);
    read.grid = {(params.block_vectors + read.threads - 1) / read.threads,
                 static_cast<int>(shape.pairs), 1};
    Dispatch write = read;
    write.kernel = "copy_blocks_write";
    write.buffers = {{scratch, Use::read},
                     {sources, Use::read},
                     {destinations, Use::read},
                     {outputs + pool, Use::write}};
    plan.dispatches.push_back(std::move(read));
    plan.dispatches.push_back(std::move(write));
  }
  return plan;
}

namespace {

template <class Shape>
void require_kernel(const Shape& shape) {
  if (const auto reason = gpu::why_not(shape); !reason.empty()) {
    throw std::runtime_error(reason);
  }
}

template <class Launch>
Plan plan_of_one(const Launch& launch, std::vector<Binding> buffers) {
  Plan plan;
  if (launch.grid.x == 0 || launch.grid.y == 0) {
    return plan;
  }
  Dispatch one{launch.key.name(), launch.key.name(), std::string(launch.key.op) + ".h",
               launch.key.constants()};
  one.buffers = std::move(buffers);
  one.params = bytes_of(launch.params);
  one.grid = launch.grid;
  one.threads = launch.threads;
  one.threadgroup_bytes = launch.threadgroup_bytes;
  plan.dispatches.push_back(std::move(one));
  return plan;
}

} // namespace

Plan plan_norm_rope_write(const gpu::NormRopeShape& shape) {
  require_kernel(shape);
  enum { qkv, positions, inverse_frequencies, slots, k_pool, v_pool, first_norm };
  const int k_norm = first_norm + shape.norms_queries;
  const int queries = k_norm + shape.norms_keys;
  const auto weights = [](int array, bool is_there) {
    return is_there ? Binding{array, Use::read} : Binding{qkv, Use::absent};
  };
  return plan_of_one(gpu::plan_norm_rope(shape),
                     {{qkv, Use::read},
                      {positions, Use::read},
                      {inverse_frequencies, Use::read},
                      {slots, Use::read},
                      weights(first_norm, shape.norms_queries),
                      weights(k_norm, shape.norms_keys),
                      {queries, Use::write},
                      {queries + 1, Use::write},
                      {queries + 2, Use::write}});
}

Plan plan_add_rms_norm(const gpu::RowShape& shape) {
  require_kernel(shape);
  enum { x, residual, weight, total, normed };
  return plan_of_one(gpu::plan_add_norm(shape), {{x, Use::read},
                                                 {residual, Use::read},
                                                 {weight, Use::read},
                                                 {total, Use::write},
                                                 {normed, Use::write}});
}

Plan plan_swiglu(const gpu::RowShape& shape) {
  require_kernel(shape);
  enum { gate_up, out };
  return plan_of_one(gpu::plan_gate(shape), {{gate_up, Use::read}, {out, Use::write}});
}

Plan plan_sample(const gpu::SampleShape& shape) {
  Plan plan;
  const auto launches = gpu::plan_sample(shape);
  if (!launches.empty()) {
    const auto bytes = gpu::sample_scratch_bytes(shape);
    plan.scratch_bytes.assign(bytes.begin(), bytes.end());
  }
  for (const auto& launch : launches) {
    Dispatch one{launch.key.name(), launch.file(), launch.text + std::string(".h"),
                 launch.key.constants()};
    for (const auto array : launch.arrays) {
      const bool is_read = one.buffers.size() < static_cast<size_t>(launch.num_read);
      const Use use = is_read ? Use::read : Use::write;
      one.buffers.push_back({static_cast<int>(array), use});
    }
    one.params = bytes_of(launch.params);
    one.grid = launch.grid;
    one.threads = launch.threads;
    one.threadgroup_bytes = launch.threadgroup_bytes;
    plan.dispatches.push_back(std::move(one));
  }
  return plan;
}

} // namespace mlxrt::metal
