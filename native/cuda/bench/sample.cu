// Times the sampling op on a GPU without MLX, and compares what it draws with a sort on the host: the
// kernels that the module embeds, launched as launch.cpp says. README.md beside this file.

#include <cuda_bf16.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>

#include "cuda/bench/timing.h"
#include "kernels/gpu/launch.h"

namespace {

using bench::device_array;
using mlxrt::gpu::SampleArray;
using mlxrt::gpu::SampleLaunch;
using Element = __nv_bfloat16;

constexpr int element = 2;  // bfloat16
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float temperature = 0.8f;

// Rules 3 to 6 of every row; each row has a random number of its own.
struct Rules {
  const char* name;
  float temperature, top_k, top_p, min_p_depth;
};

const Rules all_rules[] = {
    {"greedy", 0.0f, 0.0f, 1.0f, infinity},
    {"temperature", temperature, 0.0f, 1.0f, infinity},
    {"top_p_0.95", temperature, 0.0f, 0.95f, infinity},
    {"top_k_50", temperature, 50.0f, 1.0f, infinity},
    {"min_p_0.05", temperature, 0.0f, 1.0f, 2.9957323f},
    {"top_k_50_top_p_0.95", temperature, 50.0f, 0.95f, infinity},
};

// About normal, of this standard deviation: the sum of four uniform numbers. A model with random
// weights gives 1; a trained one is steeper.
__global__ void fill(Element* values, size_t count, unsigned seed, float deviation) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    unsigned long long x = (i + seed) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    float sum = -2.0f;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>(x >> (16 * part) & 0xffff) * 0x1p-16f;
    }
    values[i] = __float2bfloat16(sum * 1.7320508f * deviation);
  }
}

// The largest logit of each row: what reading them once takes, with all multiprocessors.
__global__ void read_once(const uint4* logits, int vectors, unsigned* largest) {
  unsigned found = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vectors; i += gridDim.x * blockDim.x) {
    const uint4 v = logits[size_t(blockIdx.y) * vectors + i];
    found = __vmaxu2(__vmaxu2(__vmaxu2(found, v.x), __vmaxu2(v.y, v.z)), v.w);
  }
  found = __reduce_max_sync(0xffffffffu, found);
  if (threadIdx.x % 32 == 0) {
    atomicMax(largest + blockIdx.y, found);
  }
}

// e^-depth in units of 2^-40, as sampling.h has it.
uint64_t weight_of(float depth) {
  const volatile float x = std::min(depth, 43.0f);  // volatile: nothing is contracted
  volatile float shifted = x * 1.44269504088896340736f;
  shifted = shifted + 12582912.0f;
  const volatile float n = shifted - 12582912.0f;
  volatile float r = n * 0.693359375f, product = n * -2.12194440e-4f;
  r = r - x;
  r = r + product;
  volatile float p = 1.9875691500e-4f;
  for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                           5.0000001201e-1f}) {
    p = p * r;
    p = p + next;
  }
  volatile float square = r * r;
  volatile float y = p * square;
  y = y + r;
  y = y + 1.0f;
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(y));
  const auto exponent = std::bit_cast<uint32_t>(static_cast<float>(shifted)) - 0x4b400000u;
  return (static_cast<uint64_t>((bits & 0x7fffffu) | 0x800000u) << 17) >>
      (127u - (bits >> 23) + exponent);
}

// total * fraction / 2^32 of a float's fraction.
unsigned __int128 share_of(uint64_t total, float fraction) {
  return static_cast<unsigned __int128>(total) * static_cast<uint64_t>(fraction * 4294967296.0f);
}

// One row's token by a sort.
int expected_token(const Element* logits, int count, const Rules& rules, float uniform) {
  std::vector<float> depths(count);
  float largest = -infinity;
  int first = 0;
  for (int i = 0; i < count; ++i) {
    depths[i] = __bfloat162float(logits[i]);
    first = depths[i] > largest ? i : first;
    largest = std::max(largest, depths[i]);
  }
  if (!(rules.temperature > 0.0f)) {
    return first;
  }
  for (float& depth : depths) {
    depth = (largest - depth) / rules.temperature;
  }
  std::vector<float> sorted = depths;
  std::sort(sorted.begin(), sorted.end());
  float limit = rules.min_p_depth;
  if (rules.top_k >= 1.0f) {
    limit = std::min(limit, sorted[static_cast<size_t>(rules.top_k) - 1]);
  }
  uint64_t total = 0, below = 0;
  for (const float depth : sorted) {
    total += depth <= limit ? weight_of(depth) : 0;
  }
  if (rules.top_p < 1.0f) {
    const auto share = share_of(total, rules.top_p);
    const uint64_t target = static_cast<uint64_t>(share >> 32) + (static_cast<uint32_t>(share) != 0);
    for (size_t i = 0; below < std::max<uint64_t>(1, target); ++i) {
      limit = sorted[i];
      below += weight_of(limit);
    }
  }
  total = 0;
  for (const float depth : depths) {
    total += depth <= limit ? weight_of(depth) : 0;
  }
  below = static_cast<uint64_t>(share_of(total, uniform) >> 32);
  for (int i = 0;; ++i) {
    const uint64_t weight = depths[i] <= limit ? weight_of(depths[i]) : 0;
    if (weight > below) {
      return i;
    }
    below -= weight;
  }
}

// One cell of the table.
class Cell {
 public:
  Cell(int rows, int vocabulary, float deviation, const Rules& rules, bool small)
      : rows_(rows), vocabulary_(vocabulary), rules_(rules), deviation_(deviation), small_(small) {
    const size_t count = size_t(rows) * vocabulary;
    sets_ = small ? 1 : static_cast<int>(bench::rotated_bytes / (count * sizeof(Element)) + 1);
    logits_ = device_array<Element>(count * sets_);
    fill<<<2048, 256>>>(logits_, count * sets_, 7, deviation);
    std::vector<float> table;
    for (int row = 0; row < rows; ++row) {
      uniforms_.push_back(static_cast<float>(row * 7919 % 64) / 64.0f + 0x1p-20f);
      table.insert(table.end(), {rules.temperature, rules.top_k, rules.top_p, rules.min_p_depth,
                                 uniforms_.back()});
    }
    table_ = bench::uploaded(table);
    const mlxrt::gpu::SampleShape shape = {.element = element, .num_rows = rows,
                                           .vocabulary = vocabulary, .rule_rows = rows};
    launches_ = mlxrt::gpu::plan_sample(shape);
    for (const int64_t bytes : mlxrt::gpu::sample_scratch_bytes(shape)) {
      scratch_.push_back(device_array<char>(bytes));
    }
    tokens_ = device_array<int>(rows);
    finite_ = device_array<unsigned char>(rows);
    least_ = device_array<float>(rows);
    largest_ = device_array<unsigned>(rows);
    for (const auto& launch : launches_) {
      kernels_.push_back(bench::kernel_of(launch.file(), launch.key.name()));
    }
  }

  ~Cell() {
    for (void* data : std::initializer_list<void*>{logits_, table_, tokens_, finite_, least_,
                                                   largest_}) {
      CHECK(cudaFree(data));
    }
    for (void* data : scratch_) {
      CHECK(cudaFree(data));
    }
  }

  // Prints a line; whether the tokens are those of the host.
  bool measure() {
    const int calls = small_ ? 1 : std::max(sets_, 20);
    const int replays = small_ ? 1 : 7;
    const auto cold = bench::time_of(calls, replays, [this](int call, cudaStream_t stream) {
      add(call % sets_, stream);
    });
    const auto warm = bench::time_of(small_ ? 1 : 50, replays, [this](int, cudaStream_t stream) {
      add(0, stream);
    });
    const int wrong = wrong_tokens();
    const auto read = bench::time_of(calls, replays, [this](int call, cudaStream_t stream) {
      read_once<<<dim3(16, rows_), 256, 0, stream>>>(
          reinterpret_cast<const uint4*>(set_of(call % sets_)), vocabulary_ / 8, largest_);
    });
    std::printf("%d,%d,%g,%s,%.2f,%.2f,%.2f,%.2f", rows_, vocabulary_, deviation_, rules_.name,
                cold.median_us, cold.least_us, warm.median_us, read.median_us);
    for (size_t launch = 0; launch < launches_.size(); ++launch) {
      const auto alone = bench::time_of(small_ ? 1 : 50, replays, [&](int, cudaStream_t stream) {
        add_launch(launch, 0, stream);
      });
      std::printf(",%.2f", alone.median_us);
    }
    std::printf(",%d\n", wrong);
    std::fflush(stdout);
    return wrong == 0;
  }

 private:
  Element* set_of(int set) {
    return logits_ + size_t(set) * rows_ * vocabulary_;
  }

  void add(int set, cudaStream_t stream) {
    for (size_t launch = 0; launch < launches_.size(); ++launch) {
      add_launch(launch, set, stream);
    }
  }

  void add_launch(size_t index, int set, cudaStream_t stream) {
    SampleLaunch launch = launches_[index];
    // As SampleArray names them.
    std::vector<void*> addresses = {set_of(set), table_, tokens_, finite_, least_};
    addresses.insert(addresses.end(), scratch_.begin(), scratch_.end());
    std::vector<void*> arguments;
    for (const SampleArray array : launch.arrays) {
      arguments.push_back(&addresses[static_cast<size_t>(array)]);
    }
    arguments.push_back(&launch.params);
    bench::launch(kernels_[index], launch.grid, launch.threads, launch.threadgroup_bytes,
                  arguments, stream);
  }

  // Of the first rows of set 0, which was sampled last.
  int wrong_tokens() {
    const int checked = std::min(rows_, 8);
    const auto logits = bench::downloaded(logits_, size_t(checked) * vocabulary_);
    const auto tokens = bench::downloaded(tokens_, checked);
    int wrong = 0;
    for (int row = 0; row < checked; ++row) {
      wrong += tokens[row] != expected_token(&logits[size_t(row) * vocabulary_], vocabulary_,
                                             rules_, uniforms_[row]);
    }
    return wrong;
  }

  int rows_, vocabulary_, sets_;
  Rules rules_;
  float deviation_;
  bool small_;
  std::vector<float> uniforms_;
  std::vector<SampleLaunch> launches_;
  std::vector<cudaKernel_t> kernels_;
  Element* logits_;
  float *table_, *least_;
  std::vector<void*> scratch_;
  int* tokens_;
  unsigned char* finite_;
  unsigned* largest_;
};

} // namespace

int main(int count, char** words) {
  const bool small = count == 2 && !std::strcmp(words[1], "--small");
  if (count > 1 && !small) {
    std::fprintf(stderr, "usage: sample [--small]\n");
    return 2;
  }
  std::printf("rows,vocabulary,deviation,rules,us,least_us,warm_us,read_us,extent_us,bins_us,"
              "candidates_us,row_us,wrong\n");
  bool agrees = true;
  for (const int vocabulary : {151'936, 32'000}) {
    for (const float deviation : {1.0f, 4.0f}) {
      for (const int rows : small ? std::vector{2} : std::vector{1, 8, 32, 64}) {
        for (const auto& rules : all_rules) {
          agrees &= Cell(rows, vocabulary, deviation, rules, small).measure();
        }
      }
    }
  }
  if (!agrees) {
    std::fprintf(stderr, "a token is not the one that a sort on the host gives\n");
  }
  return agrees ? 0 : 1;
}
