#include "mlxrt/sample.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"
#include "mlxrt/thread_pool.h"
#include "simd/dispatch.h"
#include "simd/sampling.h"

namespace mlxrt {
namespace {

using kernels::ElementType;
using kernels::largest_key;

constexpr int draw_block = 1024;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// The digits of a key, the most significant first.
struct Digit {
  int shift;
  int bits;
};
constexpr Digit digits[] = {{20, 11}, {10, 10}, {0, 10}};

// A thread's scratch memory: the row's keys and weights, and those that share the digits found so far.
struct Scratch {
  std::vector<uint32_t> keys, near_keys;
  std::vector<uint64_t> weights, near_weights, sums;
};

struct Rules {
  explicit Rules(const float* row)
      : temperature(row[static_cast<int>(Rule::temperature)]),
        top_k(row[static_cast<int>(Rule::top_k)]),
        top_p(row[static_cast<int>(Rule::top_p)]),
        min_p_depth(row[static_cast<int>(Rule::min_p_depth)]),
        uniform(row[static_cast<int>(Rule::uniform)]) {}

  float temperature, top_k, top_p, min_p_depth, uniform;
};

struct Sampled {
  int32_t token;
  bool finite;
  float least;
};

float logit_of(int32_t ordered) {
  return std::bit_cast<float>(kernels::ordered_bits(static_cast<uint32_t>(ordered)));
}

// x * 2^32 for x in [0, 1), else 0.
uint32_t fraction_of(float x) {
  return x >= 0.0f && x < 1.0f ? static_cast<uint32_t>(x * 4294967296.0f) : 0u;
}

// total * fraction / 2^32, rounded down.
uint64_t share_of(uint64_t total, uint32_t fraction) {
  return fraction * (total >> 32) + (fraction * (total & 0xffffffffu) >> 32);
}

// The same, rounded up.
uint64_t share_above(uint64_t total, uint32_t fraction) {
  const bool is_whole = static_cast<uint32_t>(fraction * (total & 0xffffffffu)) == 0;
  return share_of(total, fraction) + !is_whole;
}

// The smallest key for which the tokens with keys up to it, each counting its weight or 1, reach
// `target`, which is positive and reached at `limit`. A radix search: one pass over the row, the
// others over what shares the digits found.
template <bool weighted>
uint32_t first_reaching(Scratch& scratch, uint64_t target, uint32_t limit) {
  const uint32_t* keys = scratch.keys.data();
  const uint64_t* weights = scratch.weights.data();
  size_t count = scratch.keys.size();
  uint32_t found = 0;
  for (const auto& digit : digits) {
    uint64_t amounts[1 << digits[0].bits] = {};
    const uint32_t mask = (1u << digit.bits) - 1;
    for (size_t i = 0; i < count; ++i) {
      if (keys[i] <= limit) {
        amounts[keys[i] >> digit.shift & mask] += weighted ? weights[i] : 1;
      }
    }
    uint32_t value = 0;
    while (value < mask && amounts[value] < target) {
      target -= amounts[value++];
    }
    found |= value << digit.shift;
    size_t near = 0;
    scratch.near_keys.resize(scratch.keys.size());
    scratch.near_weights.resize(weighted ? scratch.keys.size() : 0);
    for (size_t i = 0; i < count; ++i) {
      if (keys[i] <= limit && (keys[i] >> digit.shift & mask) == value) {
        scratch.near_keys[near] = keys[i];
        if (weighted) {
          scratch.near_weights[near] = weights[i];
        }
        ++near;
      }
    }
    keys = scratch.near_keys.data();
    weights = scratch.near_weights.data();
    count = near;
  }
  return found;
}

// The largest key that rules 4 to 6 keep.
uint32_t find_limit(Scratch& scratch, const Rules& rules, const kernels::SamplingKernels& kernel) {
  const auto count = static_cast<int>(scratch.keys.size());
  uint32_t limit = largest_key;
  if (rules.min_p_depth >= 0.0f) {
    limit = std::bit_cast<uint32_t>(rules.min_p_depth) & 0x7fffffffu;
  }
  if (rules.top_k >= 1.0f && rules.top_k < static_cast<float>(count)) {
    const auto top_k = static_cast<uint64_t>(rules.top_k);
    limit = std::min(limit, first_reaching<false>(scratch, top_k, largest_key));
  }
  if (rules.top_p < 1.0f) {
    const uint64_t total =
        kernel.sum_kept(scratch.keys.data(), scratch.weights.data(), count, limit);
    const uint64_t target = std::max<uint64_t>(1, share_above(total, fraction_of(rules.top_p)));
    limit = first_reaching<true>(scratch, target, limit);
  }
  return limit;
}

// Rule 7.
int32_t draw(Scratch& scratch, uint32_t limit, float uniform,
             const kernels::SamplingKernels& kernel) {
  const auto count = static_cast<int>(scratch.keys.size());
  uint64_t total = 0;
  scratch.sums.clear();
  for (int first = 0; first < count; first += draw_block) {
    scratch.sums.push_back(kernel.sum_kept(scratch.keys.data() + first,
                                           scratch.weights.data() + first,
                                           std::min(draw_block, count - first), limit));
    total += scratch.sums.back();
  }
  // The sum up to the token exceeds its share. It exists: the share is less than the total.
  uint64_t below = share_of(total, fraction_of(uniform));
  int token = 0;
  for (const uint64_t sum : scratch.sums) {
    if (sum > below) {
      break;
    }
    below -= sum;
    token += draw_block;
  }
  for (;; ++token) {
    const uint64_t weight = scratch.keys[token] <= limit ? scratch.weights[token] : 0;
    if (weight > below) {
      return token;
    }
    below -= weight;
  }
}

Sampled sample_row(ElementType type, const void* logits, int count, const Rules* rules) {
  const auto& kernel = *kernels::active_kernels().sampling;
  const auto extent = kernel.extent(type, logits, count);
  const bool finite = extent.least > kernels::ordered_minus_infinity &&
      extent.largest < kernels::ordered_infinity;
  const bool has_none = extent.least < kernels::ordered_minus_infinity ||
      extent.largest >= kernels::ordered_infinity ||
      extent.largest == kernels::ordered_minus_infinity;
  if (has_none) {
    return {0, finite, minus_infinity};
  }
  const float largest = logit_of(extent.largest);
  if (!rules || !(rules->temperature > 0.0f)) {
    return {kernel.first_equal(type, logits, count, largest), finite, minus_infinity};
  }
  static thread_local Scratch scratch;
  scratch.keys.resize(count);
  scratch.weights.resize(count);
  kernel.weigh(type, logits, count, largest, rules->temperature, scratch.keys.data(),
               scratch.weights.data());
  const uint32_t limit = find_limit(scratch, *rules, kernel);
  const float least = limit >= largest_key
      ? logit_of(extent.least)
      : kernel.least_kept(type, logits, scratch.keys.data(), count, limit);
  return {draw(scratch, limit, rules->uniform, kernel), finite, least};
}

ElementType element_type(mx::Dtype dtype) {
  return dtype == mx::float32 ? ElementType::float32
      : dtype == mx::bfloat16 ? ElementType::bfloat16
                              : ElementType::float16;
}

} // namespace

void Sample::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (auto& output : outputs) {
    output.set_data(mx::allocator::malloc(output.nbytes()));
  }
  count_evaluation(Op::sample);
  const auto& logits = inputs[0];
  if (logits.size() == 0) {
    return;
  }
  auto& encoder = mx::cpu::get_command_encoder(stream());
  encoder.dispatch([type = element_type(logits.dtype()), logits = logits.data<char>(),
                    row_bytes = static_cast<int64_t>(logits.shape(1)) * logits.itemsize(),
                    rows = logits.shape(0), count = logits.shape(1),
                    rules = inputs[1].data<float>(), rule_rows = inputs[1].shape(0),
                    tokens = outputs[0].data<int32_t>(), finite = outputs[1].data<bool>(),
                    least = outputs[2].data<float>()] {
    parallel_for(rows, [&](int64_t row) {
      const Rules own(rules + std::min<int64_t>(row, rule_rows - 1) * rule_count);
      const auto sampled =
          sample_row(type, logits + row * row_bytes, count, row < rule_rows ? &own : nullptr);
      tokens[row] = sampled.token;
      finite[row] = sampled.finite;
      least[row] = sampled.least;
    });
  });
}

} // namespace mlxrt
