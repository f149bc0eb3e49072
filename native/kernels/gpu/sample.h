// One token per row of logits, without a sort. One threadgroup per row. Keys are the bits of
// (largest logit - logit), weights integers: every sum is exact, so that neither the number of threads
// nor their order matters, and the result is that of the CPU, bit for bit.
//
// Thresholds are found by narrowing a range of keys, eight bins at a time, each thread with bins of its
// own; the draw by narrowing a range of tokens, a piece for each simd-group.
// Source: pivots instead of a sort as in FlashInfer (Ye et al. 2025) and Qrita (Park et al.,
// arXiv 2602.01518); not FlashInfer's rejection, which takes several random numbers.
#include "params.h"
#define SIMDGROUPS SAMPLE_SIMDGROUPS
#include "rows.h"

#if ELEMENT == 0
#define LOGIT uint
#else
#define LOGIT ushort
#endif
#define INFINITE_KEY 0x7f800000u
#define NO_KEY 0xffffffffu
#define COUNT_SHIFT 52  // a thread's bin: weights below, how many above

// Who a thread is.
struct Place {
  int index;
  int lane;
  int simdgroup;
};

// Threads take chunks of VECTOR_ELEMENTS logits.
struct Row {
  DEVICE const LOGIT* logits;
  int count;
  int chunks;
  bool by_vectors;
  float largest;
  float temperature;
};

// What a pass over a row found in the bins of a range of keys, and the range that it really has.
struct Bins {
  ulong amounts[SAMPLE_BINS];
  uint least;
  uint largest;
};

INLINE float logit_at(DEVICE const LOGIT* logits, int i) {
#if ELEMENT == 0
  return bits_to_float(logits[i]);
#else
  return unpack_pair(uint(logits[i])).x;
#endif
}

// Orders like the float; -0 and 0 are one.
INLINE uint ordered(float value) {
  const uint bits = float_to_bits(value);
  return bits == 0x80000000u ? bits : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

INLINE float from_ordered(uint bits) {
  return bits_to_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

// Past the end of the row it repeats the last logit.
INLINE void load_chunk(Row row, int chunk, THREAD float* logits) {
  if (row.by_vectors) {
    unpack(((DEVICE const uint4*)row.logits)[chunk], logits);
    return;
  }
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    const int i = chunk * VECTOR_ELEMENTS + e;
    logits[e] = logit_at(row.logits, i < row.count ? i : row.count - 1);
  }
}

// The key of a chunk's element; NO_KEY past the end of the row.
INLINE uint key_of(Row row, int chunk, int element, float logit) {
  const bool is_there = chunk * VECTOR_ELEMENTS + element < row.count;
  return is_there ? float_to_bits(row.largest - logit) : NO_KEY;
}

INLINE float depth_of(Row row, uint key) {
  return rounded_quotient(bits_to_float(key), row.temperature);
}

// e^-depth in units of 2^-40. Source: the polynomial of Cephes' expf (S. Moshier, public domain).
INLINE ulong weight_of(float depth) {
  const float x = depth < 43.0f ? depth : 43.0f;
  const float shifted = rounded_sum(rounded_product(x, 1.44269504088896340736f), 12582912.0f);
  const float n = rounded_sum(shifted, -12582912.0f);
  const float r = rounded_sum(rounded_sum(rounded_product(n, 0.693359375f), -x),
                              rounded_product(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = rounded_sum(rounded_product(p, r), 1.3981999507e-3f);
  p = rounded_sum(rounded_product(p, r), 8.3334519073e-3f);
  p = rounded_sum(rounded_product(p, r), 4.1665795894e-2f);
  p = rounded_sum(rounded_product(p, r), 1.6666665459e-1f);
  p = rounded_sum(rounded_product(p, r), 5.0000001201e-1f);
  const float y = rounded_sum(rounded_sum(rounded_product(p, rounded_product(r, r)), r), 1.0f);
  const uint bits = float_to_bits(y);
  const uint shift = 127u - (bits >> 23) + (float_to_bits(shifted) - 0x4b400000u);
  return (ulong((bits & 0x7fffffu) | 0x800000u) << 17) >> shift;
}

INLINE ulong shuffle_xor_long(ulong value, int mask) {
  const uint low = shuffle_xor(uint(value), mask);
  const uint high = shuffle_xor(uint(value >> 32), mask);
  return (ulong(high) << 32) | ulong(low);
}

INLINE ulong sum_of_lanes(ulong value) {
  UNROLL for (int mask = LANES / 2; mask > 0; mask /= 2) {
    value += shuffle_xor_long(value, mask);
  }
  return value;
}

INLINE ulong largest_of_lanes(ulong value) {
  UNROLL for (int mask = LANES / 2; mask > 0; mask /= 2) {
    const ulong other = shuffle_xor_long(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// The largest of all threads; memory has room for one from each simd-group and is free afterwards.
INLINE ulong largest_of_all(Place place, ulong value, THREADGROUP ulong* memory) {
  value = largest_of_lanes(value);
  if (place.lane == 0) {
    memory[place.simdgroup] = value;
  }
  THREADGROUP_BARRIER();
  UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
    value = memory[s] > value ? memory[s] : value;
  }
  THREADGROUP_BARRIER();
  return value;
}

// x * 2^32 for x in [0, 1), else 0.
INLINE uint fraction_of(float x) {
  return x >= 0.0f && x < 1.0f ? uint(x * 4294967296.0f) : 0u;
}

// total * fraction / 2^32, rounded down, or up.
INLINE ulong share_of(ulong total, uint fraction, bool up) {
  const ulong low = ulong(fraction) * (total & 0xffffffffu);
  const bool has_rest = (low & 0xffffffffu) != 0u;
  return ulong(fraction) * (total >> 32) + (low >> 32) + (up && has_rest ? 1u : 0u);
}

// The largest key whose depth is at most this; depths that tie may have several keys.
INLINE uint last_key_within(Row row, float depth) {
  uint low = 0u, high = INFINITE_KEY;
  while (low < high) {
    const uint middle = low + (high - low + 1u) / 2u;
    if (depth_of(row, middle) <= depth) {
      low = middle;
    } else {
      high = middle - 1u;
    }
  }
  return low;
}

// Adds up what lies in [low, high]: bin (key - base) >> shift, the ends catching what is outside.
INLINE Bins fill_bins(Place place, Row row, uint low, uint high, uint base, uint shift,
                      bool weighted, THREADGROUP ulong* memory) {
  THREADGROUP ulong* own = memory + place.index;
  UNROLL for (int b = 0; b < SAMPLE_BINS; ++b) {
    own[b * THREADS] = 0u;
  }
  uint least = NO_KEY, largest = 0u;
  for (int chunk = place.index; chunk < row.chunks; chunk += THREADS) {
    float logits[VECTOR_ELEMENTS];
    load_chunk(row, chunk, logits);
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      const uint key = key_of(row, chunk, e, logits[e]);
      if (key >= low && key <= high) {
        const uint bin = (key > base ? key - base : 0u) >> shift;
        const ulong weight = weighted ? weight_of(depth_of(row, key)) : ulong(0);
        own[(bin < SAMPLE_BINS ? bin : SAMPLE_BINS - 1u) * THREADS] +=
            weight + (ulong(1) << COUNT_SHIFT);
        least = key < least ? key : least;
        largest = key > largest ? key : largest;
      }
    }
  }
  THREADGROUP_BARRIER();

  // Two simd-groups share a bin.
  const int bin = place.simdgroup / 2;
  ulong sum = 0u;
  for (int t = place.simdgroup % 2 * LANES + place.lane; t < THREADS; t += 2 * LANES) {
    const ulong part = memory[bin * THREADS + t];
    sum += weighted ? part & ((ulong(1) << COUNT_SHIFT) - 1u) : part >> COUNT_SHIFT;
  }
  sum = sum_of_lanes(sum);
  THREADGROUP_BARRIER();
  if (place.lane == 0) {
    memory[SIMDGROUPS + place.simdgroup] = sum;
  }
  Bins bins;
  bins.least = NO_KEY - uint(largest_of_all(place, ulong(NO_KEY - least), memory));
  bins.largest = uint(largest_of_all(place, ulong(largest), memory));
  UNROLL for (int b = 0; b < SAMPLE_BINS; ++b) {
    bins.amounts[b] = memory[SIMDGROUPS + 2 * b] + memory[SIMDGROUPS + 2 * b + 1];
  }
  THREADGROUP_BARRIER();
  return bins;
}

// The smallest key for which the tokens with keys up to it, each counting its weight or 1, reach the
// target: `count` tokens, or, where weighted, a share of what lies within `limit`.
INLINE uint first_reaching(Place place, Row row, uint limit, bool weighted, uint count,
                           uint fraction, THREADGROUP ulong* memory) {
  uint low = 0u, high = limit;
  // At first binades around the temperature: that is where thresholds are.
  const uint unit = float_to_bits(row.temperature);
  uint base = unit > 0x01000000u ? unit - 0x01000000u : 0u;
  uint shift = 23u;
  ulong target = ulong(count);
  bool is_first = true;
  while (low < high) {
    const Bins bins = fill_bins(place, row, low, high, base, shift, weighted, memory);
    if (is_first && weighted) {
      ulong total = 0u;
      UNROLL for (int b = 0; b < SAMPLE_BINS; ++b) {
        total += bins.amounts[b];
      }
      target = share_of(total, fraction, true);
      target = target > 0u ? target : ulong(1);
    }
    is_first = false;
    uint found = 0u;
    bool is_found = false;
    UNROLL for (int b = 0; b < SAMPLE_BINS - 1; ++b) {
      is_found = is_found || bins.amounts[b] >= target;
      target -= is_found ? ulong(0) : bins.amounts[b];
      found += is_found ? 0u : 1u;
    }
    const uint first = found > 0u ? base + (found << shift) : low;
    const uint last = found < SAMPLE_BINS - 1u ? base + ((found + 1u) << shift) - 1u : high;
    low = first > bins.least ? first : bins.least;
    high = last < bins.largest ? last : bins.largest;
    base = low;
    for (shift = 0u; (high - low) >> shift >= SAMPLE_BINS; ++shift) {
    }
  }
  return low;
}

// Rule 7, and the least logit that is kept, as `ordered`.
INLINE int draw(Place place, Row row, uint limit, uint fraction, THREADGROUP ulong* memory,
                THREAD uint* least_kept) {
  int begin = 0, end = row.chunks;
  ulong below = 0u;
  bool is_first = true;
  uint least = NO_KEY;
  while (end - begin > 1 || is_first) {
    const int piece = (end - begin + SIMDGROUPS - 1) / SIMDGROUPS;
    const int own = begin + place.simdgroup * piece;
    const int own_end = own + piece < end ? own + piece : end;
    ulong sum = 0u;
    for (int chunk = own + place.lane; chunk < own_end; chunk += LANES) {
      float logits[VECTOR_ELEMENTS];
      load_chunk(row, chunk, logits);
      UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
        const uint key = key_of(row, chunk, e, logits[e]);
        if (key <= limit) {
          sum += weight_of(depth_of(row, key));
          const uint logit = ordered(logits[e]);
          least = logit < least ? logit : least;
        }
      }
    }
    sum = sum_of_lanes(sum);
    if (is_first) {
      least = NO_KEY - uint(largest_of_all(place, ulong(NO_KEY - least), memory));
    }
    if (place.lane == 0) {
      memory[place.simdgroup] = sum;
    }
    THREADGROUP_BARRIER();
    if (is_first) {
      ulong total = 0u;
      UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
        total += memory[s];
      }
      below = share_of(total, fraction, false);
      *least_kept = least;
    }
    is_first = false;
    int chosen = 0;
    while (chosen < SIMDGROUPS - 1 && memory[chosen] <= below) {
      below -= memory[chosen];
      ++chosen;
    }
    begin += chosen * piece;
    end = begin + piece < end ? begin + piece : end;
    THREADGROUP_BARRIER();
  }
  float logits[VECTOR_ELEMENTS];
  load_chunk(row, begin, logits);
  int token = -1;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    const uint key = key_of(row, begin, e, logits[e]);
    const ulong weight = key <= limit ? weight_of(depth_of(row, key)) : ulong(0);
    if (token < 0 && weight > below) {
      token = begin * VECTOR_ELEMENTS + e;
    }
    below -= token < 0 ? weight : ulong(0);
  }
  return token;
}

// The largest key that rules 4 to 6 keep. `rules` as in mlxrt/sample.h.
INLINE uint find_limit(Place place, Row row, DEVICE const float* rules,
                       THREADGROUP ulong* memory) {
  const float top_k = rules[1], top_p = rules[2], min_p_depth = rules[3];
  uint limit = INFINITE_KEY;
  if (min_p_depth >= 0.0f) {
    limit = last_key_within(row, min_p_depth);
  }
  if (top_k >= 1.0f && top_k < float(row.count)) {
    const uint key = first_reaching(place, row, INFINITE_KEY, false, uint(top_k), 0u, memory);
    const uint last = last_key_within(row, depth_of(row, key));
    limit = last < limit ? last : limit;
  }
  if (top_p < 1.0f) {
    const uint key = first_reaching(place, row, limit, true, 0u, fraction_of(top_p), memory);
    limit = last_key_within(row, depth_of(row, key));
  }
  return limit;
}

KERNEL(NAMED(sample))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE const float* rules BUFFER(1),
    DEVICE int* tokens BUFFER(2),
    DEVICE uchar* finite BUFFER(3),
    DEVICE float* least BUFFER(4),
    PARAMETERS(SampleParams, 5)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  Place place;
  place.index = THREAD_INDEX;
  place.lane = LANE;
  place.simdgroup = SIMDGROUP;
  Row row;
  row.logits = logits + long(GROUP_X) * params.vocabulary;
  row.count = params.vocabulary;
  row.chunks = (row.count + VECTOR_ELEMENTS - 1) / VECTOR_ELEMENTS;
  row.by_vectors = params.by_vectors != 0;

  // The largest logit with its first index, and the least.
  ulong best = 0u;
  uint smallest = NO_KEY;
  for (int chunk = place.index; chunk < row.chunks; chunk += THREADS) {
    float values[VECTOR_ELEMENTS];
    load_chunk(row, chunk, values);
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      const uint logit = ordered(values[e]);
      const uint i = uint(chunk * VECTOR_ELEMENTS + e);  // past the row: not the first of its logit
      const ulong candidate = (ulong(logit) << 32) | ulong(NO_KEY - i);
      best = candidate > best ? candidate : best;
      smallest = logit < smallest ? logit : smallest;
    }
  }
  best = largest_of_all(place, best, memory);
  smallest = NO_KEY - uint(largest_of_all(place, ulong(NO_KEY - smallest), memory));
  const uint largest = uint(best >> 32);
  const uint infinity = 0xff800000u, minus_infinity = 0x007fffffu;  // as `ordered`
  const bool has_none = smallest < minus_infinity || largest >= infinity ||
      largest == minus_infinity;

  int token = has_none ? 0 : int(NO_KEY - uint(best));
  float least_logit = from_ordered(minus_infinity);
  DEVICE const float* own = rules + long(GROUP_X) * SAMPLE_RULES;
  const bool has_rules = GROUP_X < params.rule_rows;
  if (has_rules && !has_none && own[0] > 0.0f) {
    row.largest = from_ordered(largest);
    row.temperature = own[0];
    const uint limit = find_limit(place, row, own, memory);
    uint kept = 0u;
    token = draw(place, row, limit, fraction_of(own[4]), memory, &kept);
    least_logit = from_ordered(kept);
  }
  if (place.index == 0) {
    tokens[GROUP_X] = token;
    finite[GROUP_X] = smallest > minus_infinity && largest < infinity ? 1 : 0;
    least[GROUP_X] = least_logit;
  }
}
