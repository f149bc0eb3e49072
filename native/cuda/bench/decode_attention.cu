// Times decode attention on a GPU without MLX: the kernels that the module embeds, launched as
// launch.cpp says, replayed as a CUDA graph. README.md beside this file.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/bench/timing.h"
#include "kernels/gpu/launch.h"

namespace {

using bench::device_array;
using bench::rotated_bytes;
using bench::uploaded;
using mlxrt::gpu::AttentionLaunch;
using mlxrt::gpu::AttentionShape;
using Element = __nv_bfloat16;

constexpr int block_size = 16;
constexpr int head_dim = 128;
constexpr int element = 2;  // bfloat16
constexpr float allowed_error = 4e-3f;         // outputs are below 1: one rounding of them

struct Settings {
  int num_q_heads = 16;
  int num_kv_heads = 8;
  bool small = false;  // for compute-sanitizer: two cells, one call each
};

// Numbers between -1 and 1 that depend on their place and the seed alone.
__global__ void fill(Element* values, size_t count, unsigned seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    unsigned long long x = (i + seed) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ull;
    values[i] = __float2bfloat16(static_cast<float>(x >> 40) * 0x1p-23f - 1.0f);
  }
}

__device__ float sum_of_lanes(float value) {
  for (int mask = 16; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, mask);
  }
  return value;
}

// One warp for each (head, sequence), position after position in float32.
__global__ void reference(const Element* q, const Element* keys, const Element* values,
                          const int* tables, int max_blocks, int context, int group, float scale,
                          float* out) {
  constexpr int mine = head_dim / 32;
  const size_t row = size_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const size_t kv_heads = gridDim.x / group;
  float query[mine], sums[mine] = {}, maximum = -INFINITY, weight = 0;
  for (int i = 0; i < mine; ++i) {
    query[i] = __bfloat162float(q[row * head_dim + i * 32 + threadIdx.x]);
  }
  for (int position = 0; position < context; ++position) {
    const size_t block = tables[blockIdx.y * size_t(max_blocks) + position / block_size];
    const size_t slot = block * block_size + position % block_size;
    const size_t at = (slot * kv_heads + blockIdx.x / group) * head_dim + threadIdx.x;
    float score = 0;
    for (int i = 0; i < mine; ++i) {
      score += query[i] * __bfloat162float(keys[at + i * 32]);
    }
    score = sum_of_lanes(score) * scale;
    const float larger = fmaxf(maximum, score);
    const float kept = expf(maximum - larger), added = expf(score - larger);
    weight = weight * kept + added;
    for (int i = 0; i < mine; ++i) {
      sums[i] = sums[i] * kept + added * __bfloat162float(values[at + i * 32]);
    }
    maximum = larger;
  }
  for (int i = 0; i < mine; ++i) {
    out[row * head_dim + i * 32 + threadIdx.x] = sums[i] / weight;
  }
}

// A pool of keys, one of values, queries and outputs for the largest cell.
struct Memory {
  Element *keys, *values, *queries, *outputs;
  float* expected;
  int num_blocks;
};

Memory allocate(const Settings& settings, int most_sequences, size_t most_positions) {
  Memory memory{};
  const size_t row = size_t(settings.num_kv_heads) * head_dim;
  const size_t slots = std::max(most_positions, rotated_bytes / (4 * row)) + block_size;
  memory.num_blocks = static_cast<int>(slots / block_size);
  const size_t outputs = size_t(most_sequences) * settings.num_q_heads * head_dim;
  memory.keys = device_array<Element>(slots * row);
  memory.values = device_array<Element>(slots * row);
  memory.queries = device_array<Element>(outputs);
  memory.outputs = device_array<Element>(outputs);
  memory.expected = device_array<float>(outputs);
  fill<<<2048, 256>>>(memory.keys, slots * row, 1);
  fill<<<2048, 256>>>(memory.values, slots * row, 77'777);
  fill<<<64, 256>>>(memory.queries, outputs, 5);
  CHECK(cudaDeviceSynchronize());
  return memory;
}

// One cell of the table: `sequences` of `context` positions, one row each.
class Cell {
 public:
  Cell(const Settings& settings, const Memory& memory, int sequences, int context)
      : memory_(memory), sequences_(sequences), context_(context) {
    shape_ = {.element = element, .head_dim = head_dim, .num_q_heads = settings.num_q_heads,
              .num_kv_heads = settings.num_kv_heads, .block_size = block_size,
              .num_blocks = memory.num_blocks, .max_blocks = context / block_size,
              .num_sequences = sequences, .num_rows = sequences, .most_rows = 1,
              .positions = int64_t{sequences} * context};
    shape_.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    CHECK(cudaDeviceGetAttribute(&shape_.cores, cudaDevAttrMultiProcessorCount, 0));
    launch_ = mlxrt::gpu::plan_attention(shape_).at(0);
    kernel_ = bench::kernel_of(launch_.key.file(), launch_.key.name());
    const int blocks_of_set = sequences * shape_.max_blocks;
    bytes_ = size_t(blocks_of_set) * block_size * settings.num_kv_heads * head_dim * 4;
    sets_ = std::min<int>((rotated_bytes + bytes_ - 1) / bytes_, memory.num_blocks / blocks_of_set);
    std::vector<int> blocks(memory.num_blocks), starts(sequences + 1);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(3));
    std::iota(starts.begin(), starts.end(), 0);
    tables_ = uploaded(blocks);
    starts_ = uploaded(starts);
    contexts_ = uploaded(std::vector<int>(sequences, context));
    outputs_ = device_array<float>(std::max<int64_t>(1, launch_.partial_vectors * head_dim));
    logarithms_ = device_array<float>(std::max<int64_t>(1, launch_.partial_vectors));
    arrivals_ = uploaded(std::vector<unsigned>(std::max<int64_t>(1, launch_.arrivals), 0));
  }

  ~Cell() {
    for (void* data : {static_cast<void*>(tables_), static_cast<void*>(starts_),
                       static_cast<void*>(contexts_), static_cast<void*>(outputs_),
                       static_cast<void*>(logarithms_), static_cast<void*>(arrivals_)}) {
      CHECK(cudaFree(data));
    }
  }

  // Prints a line; whether the outputs agree with the reference.
  bool measure(bool once) {
    const int calls = once ? 1 : sets_ * std::max(1, (20 + sets_ - 1) / sets_);
    const auto times = bench::time_of(calls, once ? 1 : 7, [this](int call, cudaStream_t stream) {
      add(call, stream);
    });
    const float error = largest_error((calls - 1) % sets_);
    const double rate = static_cast<double>(bytes_) / times.median_us * 1e-6;
    std::printf("%d,%d,%.2f,%.2f,%.2f,%d,%.1e\n", sequences_, context_, times.median_us,
                times.least_us, rate, launch_.params.max_parts, error);
    std::fflush(stdout);
    return error <= allowed_error;
  }

 private:
  int* table_of(int set) {
    return tables_ + size_t(set) * sequences_ * shape_.max_blocks;
  }

  void add(int call, cudaStream_t stream) {
    int* table = table_of(call % sets_);
    float* no_sinks = nullptr;
    bench::launch(kernel_, launch_.grid, launch_.threads, launch_.threadgroup_bytes,
                  {&memory_.queries, &memory_.keys, &memory_.values, &table, &starts_, &contexts_,
                   &no_sinks, &memory_.outputs, &outputs_, &logarithms_, &arrivals_,
                   &launch_.params},
                  stream);
  }

  float largest_error(int set) {
    const size_t count = size_t(sequences_) * shape_.num_q_heads * head_dim;
    reference<<<dim3(shape_.num_q_heads, sequences_), 32>>>(
        memory_.queries, memory_.keys, memory_.values, table_of(set), shape_.max_blocks, context_,
        shape_.num_q_heads / shape_.num_kv_heads, shape_.scale, memory_.expected);
    std::vector<float> expected(count);
    std::vector<Element> actual(count);
    CHECK(cudaMemcpy(expected.data(), memory_.expected, count * 4, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(actual.data(), memory_.outputs, count * 2, cudaMemcpyDeviceToHost));
    float worst = 0;
    for (size_t i = 0; i < count; ++i) {
      const float difference = std::fabs(__bfloat162float(actual[i]) - expected[i]);
      worst = difference <= worst ? worst : difference;  // NaN is not
    }
    return worst;
  }

  Memory memory_;
  int sequences_, context_, sets_;
  size_t bytes_;
  AttentionShape shape_{};
  AttentionLaunch launch_{};
  cudaKernel_t kernel_{};
  int *tables_, *starts_, *contexts_;
  float *outputs_, *logarithms_;
  unsigned* arrivals_;
};

Settings parsed(int count, char** words) {
  Settings settings;
  std::vector<int> heads;
  for (int i = 1; i < count; ++i) {
    if (!std::strcmp(words[i], "--small")) {
      settings.small = true;
    } else {
      heads.push_back(std::atoi(words[i]));
    }
  }
  if (heads.size() == 2) {
    settings.num_q_heads = heads[0];
    settings.num_kv_heads = heads[1];
  }
  const bool whole = settings.num_kv_heads > 0 && settings.num_q_heads > 0 &&
      settings.num_q_heads % settings.num_kv_heads == 0;
  if (!whole || (heads.size() != 0 && heads.size() != 2)) {
    std::fprintf(stderr, "usage: decode_attention [QUERY_HEADS KV_HEADS] [--small]\n");
    std::exit(2);
  }
  return settings;
}

} // namespace

int main(int count, char** words) {
  const Settings settings = parsed(count, words);
  const std::vector<int> batches = settings.small ? std::vector{1, 8} : std::vector{1, 8, 32, 64};
  const auto contexts = settings.small ? std::vector{1024} : std::vector{1024, 4096, 16384};
  const auto memory =
      allocate(settings, batches.back(), size_t(batches.back()) * contexts.back());
  std::printf("batch,context,us,least_us,tb_per_s,parts,error\n");
  bool agrees = true;
  for (int sequences : batches) {
    for (int context : contexts) {
      agrees &= Cell(settings, memory, sequences, context).measure(settings.small);
    }
  }
  if (!agrees) {
    std::fprintf(stderr, "an output is more than %g from the reference\n", allowed_error);
  }
  return agrees ? 0 : 1;
}
