// Times the fused ops' kernels on a GPU without MLX, at the widths of Qwen3-0.6B: the kernels that the
// module embeds, launched as launch.cpp says. README.md beside this file.

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "cuda/bench/timing.h"
#include "kernels/gpu/launch.h"

namespace {

using bench::device_array;
using Element = __nv_bfloat16;

constexpr int element = 2;  // bfloat16
constexpr int hidden = 1024;
constexpr int inner = 3072;
constexpr int num_q_heads = 16;
constexpr int num_kv_heads = 8;
constexpr int head_dim = 128;
constexpr float eps = 1e-6f;
constexpr double bandwidth = 4e12;  // bytes/s that an H200 reads and writes at

__global__ void fill(Element* values, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    values[i] = __float2bfloat16(static_cast<float>((i * 2654435761u >> 8) & 0xffff) * 0x1p-15f - 1.0f);
  }
}

// The same memory serves every op: pieces of it in turn, so that none is still in a cache.
class Memory {
 public:
  Memory() : values_(device_array<Element>(count_)) {
    fill<<<2048, 256>>>(values_, count_);
    CHECK(cudaDeviceSynchronize());
  }

  // The next `elements`, from a multiple of 256 bytes.
  void* next(size_t elements) {
    elements = (elements + 127) / 128 * 128;
    at_ = at_ + elements > count_ ? 0 : at_;
    void* found = values_ + at_;
    at_ += elements;
    return found;
  }

 private:
  static constexpr size_t count_ = 500'000'000;
  Element* values_;
  size_t at_ = 0;
};

// Elements of each buffer of an op's row; 0: the buffer is small, and one for all calls.
struct Op {
  const char* name;
  std::vector<size_t> row_elements;
  size_t row_bytes;  // read and written
};

template <class Launch>
void measure(Memory& memory, const Op& op, Launch launch, const std::vector<void*>& small_buffers,
             int rows, bool small) {
  const auto kernel = bench::kernel_of(launch.key.file(), launch.key.name());
  const size_t bytes = op.row_bytes * rows;
  const int calls = small ? 1 : std::max<int>(20, bench::rotated_bytes / bytes + 1);
  const auto times = bench::time_of(calls, small ? 1 : 7, [&](int, cudaStream_t stream) {
    std::vector<void*> addresses(op.row_elements.size());
    auto next_small = small_buffers.begin();
    for (size_t i = 0; i < addresses.size(); ++i) {
      addresses[i] = op.row_elements[i] ? memory.next(op.row_elements[i] * rows) : *next_small++;
    }
    std::vector<void*> arguments;
    for (auto& one : addresses) {
      arguments.push_back(&one);
    }
    arguments.push_back(&launch.params);
    bench::launch(kernel, launch.grid, launch.threads, launch.threadgroup_bytes, arguments, stream);
  });
  const double floor = static_cast<double>(bytes) / bandwidth * 1e6;
  std::printf("%s,%d,%.2f,%.2f,%.2f,%.2f,%.2f\n", op.name, rows, times.median_us, times.least_us,
              static_cast<double>(bytes) / times.median_us * 1e-6, floor, times.median_us / floor);
  std::fflush(stdout);
}

} // namespace

int main(int count, char** words) {
  const bool small = count == 2 && !std::strcmp(words[1], "--small");
  if (count > 1 && !small) {
    std::fprintf(stderr, "usage: row_ops [--small]\n");
    return 2;
  }
  Memory memory;
  constexpr int most_rows = 8192;
  std::vector<int> positions(most_rows);
  std::vector<int64_t> slots(most_rows);
  for (int row = 0; row < most_rows; ++row) {
    positions[row] = row % 4096;
    slots[row] = row;
  }
  std::vector<float> frequencies(head_dim / 2, 0.01f);
  int* device_positions = bench::uploaded(positions);
  int64_t* device_slots = bench::uploaded(slots);
  float* device_frequencies = bench::uploaded(frequencies);
  void* weights = memory.next(4096);
  constexpr size_t q = num_q_heads * head_dim, kv = num_kv_heads * head_dim;
  const Op rope = {"norm_rope_write", {q + 2 * kv, 0, 0, 0, 0, 0, q, kv, kv}, 4 * (q + 2 * kv)};
  const Op add = {"add_rms_norm", {hidden, hidden, 0, hidden, hidden}, 8 * hidden};
  const Op gate = {"swiglu", {2 * inner, inner}, 6 * inner};
  std::printf("op,rows,us,least_us,tb_per_s,floor_us,us_per_floor\n");
  for (const int rows : small ? std::vector{3} : std::vector{8, 64, 512, 8192}) {
    const mlxrt::gpu::NormRopeShape heads = {
        .element = element, .pool_element = element, .num_rows = rows, .num_q_heads = num_q_heads,
        .num_kv_heads = num_kv_heads, .head_dim = head_dim, .pairs = head_dim / 2,
        .num_slots = most_rows, .norms_queries = true, .norms_keys = true, .eps = eps};
    measure(memory, rope, mlxrt::gpu::plan_norm_rope(heads),
            {device_positions, device_frequencies, device_slots, weights, weights}, rows, small);
    measure(memory, add, mlxrt::gpu::plan_add_norm({element, rows, hidden, eps}), {weights}, rows,
            small);
    measure(memory, gate, mlxrt::gpu::plan_gate({element, rows, inner}), {}, rows, small);
  }
  CHECK(cudaDeviceSynchronize());
  return 0;
}
