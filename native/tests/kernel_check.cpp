// Compares one kernel set with a plain double-precision attention, without MLX or Python: for
// instruction sets that the machine at hand only emulates. How to run it: native/README.md.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "simd/attention.h"
#include "simd/rows.h"
#include "tests/fused_check.h"

#ifndef KERNEL_SET
#define KERNEL_SET generic_kernels
#endif

using namespace mlxrt::kernels;

namespace {

struct Shape {
  int rows, context, kv_heads, group, key_dim, value_dim, block_size, window;
  float softcap;
  ElementType type;
};

struct Pool {
  std::vector<char> bytes;
  std::vector<float> values; // what the bytes decode to
};

int item_bytes(ElementType type) {
  return type == ElementType::float32 ? 4 : 2;
}

Pool random_pool(const Shape& s, int dim, std::mt19937& random) {
  const int64_t count = int64_t{s.context + s.block_size} * s.kv_heads * dim;
  std::normal_distribution<float> normal;
  std::vector<float> drawn(count);
  for (auto& x : drawn) {
    x = normal(random);
  }
  Pool pool{std::vector<char>(count * item_bytes(s.type)), std::vector<float>(count)};
  store_row(s.type, pool.bytes.data(), static_cast<int>(count), 1.0f, drawn.data());
  load_row(s.type, pool.bytes.data(), 1, static_cast<int>(count), 1.0f, pool.values.data());
#ifdef PLANT_OUT_OF_RANGE_READ // what the address sanitizer must find
  // The allocation ends where the last token begins: the first read past it is in the red zone,
  // whatever else the heap holds.
  const int64_t short_bytes = int64_t{s.context - 1} * s.kv_heads * dim * item_bytes(s.type);
  pool.bytes = std::vector<char>(pool.bytes.begin(), pool.bytes.begin() + short_bytes);
#endif
  return pool;
}

// Attention of one query head at one position, in double precision.
std::vector<double> expected(const Shape& s, const Pool& keys, const Pool& values,
                             const float* query, int position, int kv_head) {
  const int first = s.window > 0 ? std::max(0, position - s.window + 1) : 0;
  std::vector<double> sum(s.value_dim);
  double total = 0;
  for (int p = first; p <= position; ++p) {
    double score = 0;
    for (int d = 0; d < s.key_dim; ++d) {
      score += double{query[d]} * keys.values[(int64_t{p} * s.kv_heads + kv_head) * s.key_dim + d];
    }
    // Without a cap the queries hold a factor log2(e).
    const double weight = s.softcap > 0 ? std::exp(s.softcap * std::tanh(score / s.softcap))
                                        : std::exp2(score);
    total += weight;
    for (int d = 0; d < s.value_dim; ++d) {
      sum[d] += weight * values.values[(int64_t{p} * s.kv_heads + kv_head) * s.value_dim + d];
    }
  }
  for (auto& x : sum) {
    x /= total;
  }
  return sum;
}

double worst_difference(const Shape& s, unsigned seed) {
  std::mt19937 random(seed);
  const Pool keys = random_pool(s, s.key_dim, random);
  const Pool values = random_pool(s, s.value_dim, random);
  const int heads = s.kv_heads * s.group;
  const int key_stride = (s.key_dim + 15) / 16 * 16;
  const int value_stride = (s.value_dim + 15) / 16 * 16;
  std::vector<float> queries(s.rows * heads * key_stride);
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(s.key_dim)));
  for (int i = 0; i < s.rows * heads; ++i) {
    for (int d = 0; d < s.key_dim; ++d) {
      queries[i * key_stride + d] = normal(random);
    }
  }
  std::vector<int32_t> table;
  for (int b = 0; b * s.block_size < s.context; ++b) {
    table.push_back(b);
  }
  std::vector<float> maxima(s.rows * heads), sums(s.rows * heads);
  std::vector<float> outputs(s.rows * heads * value_stride);
  AttentionPart part{};
  part.queries = queries.data();
  part.keys = keys.bytes.data();
  part.values = values.bytes.data();
  part.table = table.data();
  part.maxima = maxima.data();
  part.sums = sums.data();
  part.outputs = outputs.data();
  part.first_position = s.context - s.rows;
  part.end = s.context;
  part.window = s.window;
  part.softcap = s.softcap;
  part.pool_type = s.type;
  part.rows = s.rows;
  part.num_q_heads = heads;
  part.num_kv_heads = s.kv_heads;
  part.kv_head_end = s.kv_heads;
  part.key_dim = s.key_dim;
  part.value_dim = s.value_dim;
  part.key_stride = key_stride;
  part.value_stride = value_stride;
  part.block_size = s.block_size;
  KERNEL_SET().attend(part);
  double worst = 0;
  for (int i = 0; i < s.rows * heads; ++i) {
    const auto truth = expected(s, keys, values, queries.data() + i * key_stride,
                                s.context - s.rows + i / heads, i % heads / s.group);
    for (int d = 0; d < s.value_dim; ++d) {
      const double difference = std::abs(outputs[i * value_stride + d] / sums[i] - truth[d]);
      worst = difference > worst || std::isnan(difference) ? difference : worst;
    }
  }
  return worst;
}

} // namespace

int main() {
  if (!check_fused_rows(KERNEL_SET())) {
    return 1;
  }
  std::mt19937 random(1);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  double worst = 0;
  int count = 0;
  for (; count < 300; ++count) {
    Shape s{};
    s.context = pick(1, 150);
    s.rows = pick(1, std::min(s.context, 20));
    s.kv_heads = pick(1, 3);
    s.group = pick(1, 9);
    s.key_dim = 8 * pick(1, 33);
    s.value_dim = 8 * pick(1, 33);
    s.block_size = pick(1, 64);
    s.window = pick(0, 1) * pick(1, 160);
    s.softcap = pick(0, 2) == 0 ? 5.0f : 0.0f;
    s.type = static_cast<ElementType>(pick(0, 2));
    const double difference = worst_difference(s, count);
    if (!(difference < 2e-5)) {
      std::printf("case %d differs by %g\n", count, difference);
      return 1;
    }
    worst = std::max(worst, difference);
  }
  std::printf("%s: %d cases, largest difference %.2g\n", KERNEL_SET().name, count, worst);
  return 0;
}
