#include "tests/fused_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "simd/fused.h"
#include "simd/rows.h"

using namespace mlxrt::kernels;

namespace {

std::mt19937 source(2);

int pick(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(source);
}

int item_bytes(ElementType type) {
  return type == ElementType::float32 ? 4 : 2;
}

double rounding(ElementType type) {
  return type == ElementType::float32 ? 4e-6 : type == ElementType::bfloat16 ? 1.0 / 32 : 1.0 / 256;
}

// Drawn elements as the type holds them, and what they decode to.
struct Drawn {
  std::vector<char> bytes;
  std::vector<float> values;

  Drawn(ElementType type, int count) : bytes(count * item_bytes(type)), values(count) {
    std::normal_distribution<float> normal;
    for (auto& x : values) {
      x = normal(source);
    }
    store_row(type, bytes.data(), count, 1.0f, values.data());
    load_row(type, bytes.data(), 1, count, 1.0f, values.data());
  }
};

std::vector<float> decoded(ElementType type, const std::vector<char>& bytes) {
  std::vector<float> values(bytes.size() / item_bytes(type));
  load_row(type, bytes.data(), 1, static_cast<int>(values.size()), 1.0f, values.data());
  return values;
}

std::vector<float> padded(const std::vector<float>& values) {
  std::vector<float> result = values;
  result.resize(padded_floats(static_cast<int>(values.size())));
  return result;
}

// By the largest element, since a rotation mixes them.
bool near(const std::vector<float>& actual, const std::vector<double>& expected, double allowed) {
  double largest = 1e-6;
  for (const double x : expected) {
    largest = std::max(largest, std::abs(x));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(std::abs(actual[i] - expected[i]) <= allowed * largest)) {
      std::printf("element %zu is %g, expected %g\n", i, actual[i], expected[i]);
      return false;
    }
  }
  return actual.size() == expected.size();
}

void norm(double* x, int size, const float* weight, double eps) {
  double squares = 0;
  for (int i = 0; i < size; ++i) {
    squares += x[i] * x[i];
  }
  for (int i = 0; i < size; ++i) {
    x[i] *= weight[i] / std::sqrt(squares / size + eps);
  }
}

struct Heads {
  int q, kv, dim, half;
  bool traditional;
  float position;
};

void turn(double* head, const Heads& heads, const std::vector<float>& inverse) {
  for (int i = 0; i < heads.half; ++i) {
    double& a = head[heads.traditional ? 2 * i : i];
    double& b = head[heads.traditional ? 2 * i + 1 : heads.half + i];
    const double angle = heads.position * inverse[i];
    const double first = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = first;
  }
}

bool check_norm_rope(const KernelSet& set, ElementType type, ElementType pool_type) {
  const int dim = 2 * pick(1, 140);
  const Heads heads{pick(1, 5), pick(1, 3), dim, pick(1, dim / 2), pick(0, 1) == 1,
                    static_cast<float>(pick(0, 3000))};
  const Drawn qkv(type, (heads.q + 2 * heads.kv) * dim), weight(type, dim);
  std::vector<float> inverse(heads.half);
  for (auto& x : inverse) {
    x = std::exp2(-static_cast<float>(pick(0, 12)));
  }
  const bool normed = pick(0, 2) > 0;
  std::vector<double> expected(qkv.values.begin(), qkv.values.end());
  for (int h = 0; h < heads.q + heads.kv; ++h) {
    if (normed) {
      norm(expected.data() + h * dim, dim, weight.values.data(), 1e-6);
    }
    turn(expected.data() + h * dim, heads, inverse);
  }
  const auto weights = padded(weight.values), frequencies = padded(inverse);
  std::vector<float> cosines(padded_floats(heads.half)), sines(cosines);
  set.angles(type, frequencies.data(), heads.position, heads.half, cosines.data(), sines.data());
  std::vector<float> scratch(norm_rope_scratch(dim));
  std::vector<char> queries(heads.q * dim * item_bytes(type));
  std::vector<char> keys(heads.kv * dim * item_bytes(pool_type)), values(keys);
  const float* norm_weight = normed ? weights.data() : nullptr;
  set.norm_rope({qkv.bytes.data(), queries.data(), keys.data(), values.data(), norm_weight,
                 norm_weight, cosines.data(), sines.data(), scratch.data(), 1e-6f, type, pool_type,
                 heads.q, heads.kv, dim, heads.half, heads.traditional});
  const auto key_begin = expected.begin() + heads.q * dim;
  const auto value_begin = key_begin + heads.kv * dim;
  const double allowed = 2 * std::max(rounding(type), rounding(pool_type));
  return near(decoded(type, queries), {expected.begin(), key_begin}, allowed) &&
      near(decoded(pool_type, keys), {key_begin, value_begin}, allowed) &&
      near(decoded(pool_type, values), {value_begin, expected.end()}, allowed);
}

bool check_rows(const KernelSet& set, ElementType type) {
  const int size = pick(1, 300);
  const Drawn x(type, size), residual(type, size), weight(type, size);
  std::vector<double> total(size), gated(size);
  for (int i = 0; i < size; ++i) {
    total[i] = double{x.values[i]} + residual.values[i];
    gated[i] = x.values[i] / (1 + std::exp(-double{x.values[i]})) * residual.values[i];
  }
  std::vector<double> normed = total;
  norm(normed.data(), size, weight.values.data(), 1e-6);
  std::vector<char> sum(x.bytes.size()), out(sum), gate(sum);
  set.add_norm({x.bytes.data(), residual.bytes.data(), weight.bytes.data(), sum.data(), out.data(),
                1e-6f, type, size});
  set.gate({x.bytes.data(), residual.bytes.data(), gate.data(), type, size});
  return near(decoded(type, sum), total, rounding(type)) &&
      near(decoded(type, out), normed, rounding(type)) &&
      near(decoded(type, gate), gated, rounding(type));
}

} // namespace

bool check_fused_rows(const KernelSet& set) {
  for (int i = 0; i < 300; ++i) {
    const auto type = static_cast<ElementType>(i % 3);
    const auto pool_type = pick(0, 1) ? type : static_cast<ElementType>(pick(0, 2));
    if (!check_norm_rope(set, type, pool_type) || !check_rows(set, type)) {
      std::printf("fused rows, case %d\n", i);
      return false;
    }
  }
  return true;
}
