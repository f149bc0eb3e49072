// What the kernels of the sampling op share: keys and weights, sums over threads, and the search for a
// threshold. What includes it says SIMDGROUPS, and BINS of a thread.
//
// Keys are the bits of (largest logit - logit), weights integers: every sum is exact, so that neither
// the number of threads nor their order matters, and the result is that of the CPU, bit for bit.
// Source: pivots instead of a sort as in FlashInfer (Ye et al. 2025) and Qrita (Park et al.,
// arXiv 2602.01518); not FlashInfer's rejection, which takes several random numbers.
#pragma once

#include "params.h"
#include "rows.h"

#if ELEMENT == 0
#define LOGIT uint
#define INFINITE_LOGIT 0x7f800000u
#else
#define LOGIT ushort
#define INFINITE_LOGIT (ELEMENT == 1 ? 0x7c00u : 0x7f80u)
#endif
#define INFINITE_KEY 0x7f800000u
#define NO_KEY 0xffffffffu
#define ORDERED_INFINITY 0xff800000u  // as `ordered`
#define ORDERED_MINUS_INFINITY 0x007fffffu

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
  int part_chunks;
  bool by_vectors;
  uint padding;  // logit past the end
  float largest;
  float temperature;
};

// The largest logit as `ordered`, above NO_KEY less its first index; and the least.
struct Extent {
  ulong best;
  uint smallest;
};

// A search for the smallest key for which the tokens with keys up to it, each counting its weight or 1,
// reach the target: `top_k` tokens, or, where weighted, a share of what lies within the first `high`.
// It is in [low, high], which is cut in bins: (key - base) >> shift, the ends catching what is outside.
struct Search {
  bool is_sought;
  bool is_weighted;
  uint low;
  uint high;
  uint base;
  uint shift;
  uint fraction;
  ulong target;  // 0: not yet known
};

// Orders like the float; -0 and 0 are one.
INLINE uint ordered(float value) {
  const uint bits = float_to_bits(value);
  return bits == 0x80000000u ? bits : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

INLINE float from_ordered(uint bits) {
  return bits_to_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

INLINE Row row_of(DEVICE const LOGIT* logits, long row, CONSTANT const SampleParams& params) {
  Row found;
  found.logits = logits + row * params.vocabulary;
  found.count = params.vocabulary;
  found.chunks = (params.vocabulary + VECTOR_ELEMENTS - 1) / VECTOR_ELEMENTS;
  found.part_chunks = SAMPLE_PART_CHUNKS;
  found.by_vectors = params.by_vectors != 0;
  found.padding = INFINITE_LOGIT;  // a key that is none
  found.largest = 0.0f;
  found.temperature = 0.0f;
  return found;
}

INLINE uint logit_at(Row row, int index) {
  return index < row.count ? uint(row.logits[index]) : row.padding;
}

// The chunk behind the last one of a part.
INLINE int end_of_part(Row row, int part) {
  const int end = (part + 1) * row.part_chunks;
  return end < row.chunks ? end : row.chunks;
}

// A logit within the row.
INLINE float value_at(Row row, int index) {
#if ELEMENT == 0
  return bits_to_float(row.logits[index]);
#else
  return unpack_pair(uint(row.logits[index])).x;
#endif
}

// The bits of a chunk's logits; of the last one's before `end` where the chunk lies past it, so that
// loops may fetch ahead.
INLINE uint4 load_chunk(Row row, int chunk, int end) {
  chunk = chunk < end ? chunk : end - 1;
  if (row.by_vectors) {
    return ((DEVICE const uint4*)row.logits)[chunk];
  }
  uint words[4];
  UNROLL for (int w = 0; w < 4; ++w) {
#if ELEMENT == 0
    words[w] = logit_at(row, 4 * chunk + w);
#else
    words[w] = logit_at(row, 8 * chunk + 2 * w) | (logit_at(row, 8 * chunk + 2 * w + 1) << 16);
#endif
  }
  return make_vector(words[0], words[1], words[2], words[3]);
}

// Above INFINITE_KEY past the end of the row.
INLINE uint key_of(Row row, float logit) {
  return float_to_bits(row.largest - logit);
}

// A bit for each logit of a chunk whose key is from `low` to `high`.
INLINE uint within(Row row, uint4 chunk, uint low, uint high) {
  float values[VECTOR_ELEMENTS];
  unpack(chunk, values);
  uint bits = 0u;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    const uint key = key_of(row, values[e]);
    bits |= key >= low && key <= high ? 1u << e : 0u;
  }
  return bits;
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

INLINE Extent wider(Extent one, ulong best, uint smallest) {
  one.best = best > one.best ? best : one.best;
  one.smallest = smallest < one.smallest ? smallest : one.smallest;
  return one;
}

INLINE Extent extent_of_lanes(Extent extent) {
  UNROLL for (int mask = LANES / 2; mask > 0; mask /= 2) {
    const uint smallest = shuffle_xor(extent.smallest, mask);
    extent = wider(extent, shuffle_xor_long(extent.best, mask), smallest);
  }
  return extent;
}

// Of a row, from those of its parts: best and smallest of each.
INLINE Extent extent_of_parts(Place place, DEVICE const ulong* extents, int parts) {
  Extent extent = {0u, NO_KEY};
  for (int p = place.lane; p < parts; p += LANES) {
    extent = wider(extent, extents[2 * p], uint(extents[2 * p + 1]));
  }
  return extent_of_lanes(extent);
}

// Whether no token can be drawn: a NaN, an infinity, or nothing but minus infinity.
INLINE bool has_none(Extent extent) {
  const uint largest = uint(extent.best >> 32);
  return extent.smallest < ORDERED_MINUS_INFINITY || largest >= ORDERED_INFINITY ||
      largest == ORDERED_MINUS_INFINITY;
}

// Whether a token of the row is drawn: it is not greedy, and has one. Finds what its keys and depths
// are reckoned from.
INLINE bool is_drawn(Extent extent, DEVICE const float* rules, THREAD Row* row) {
  row->largest = from_ordered(uint(extent.best >> 32));
  row->temperature = rules[0];
  return rules[0] > 0.0f && !has_none(extent);
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
  if (depth >= bits_to_float(INFINITE_KEY)) {
    return INFINITE_KEY;
  }
  // The product is near it, unless numbers are too small to divide exactly.
  const uint near = float_to_bits(rounded_product(depth, row.temperature));
  if (near > 1u && near < INFINITE_KEY - 2u) {
    UNROLL for (uint key = near - 2u; key <= near + 2u; ++key) {
      if (depth_of(row, key) <= depth && depth_of(row, key + 1u) > depth) {
        return key;
      }
    }
  }
  uint low = 0u, high = INFINITE_KEY;
  while (low < high) {
    const uint middle = low + (high - low + 1u) / 2u;
    if (depth_of(row, middle) <= depth) {
      low = middle;
    } else {
      high = middle - 1u;
    }
  }
  return high;
}

// The largest key that rule 6 keeps. `rules` as in mlxrt/sample.h.
INLINE uint limit_of_min_p(Row row, DEVICE const float* rules) {
  return rules[3] >= 0.0f ? last_key_within(row, rules[3]) : INFINITE_KEY;
}

// At first the bins are parts of eight binades around the temperature: that is where thresholds are.
INLINE Search search_of(Row row, bool is_weighted, uint limit, int bins) {
  const uint unit = float_to_bits(row.temperature);
  Search search;
  search.is_sought = false;
  search.is_weighted = is_weighted;
  search.low = 0u;
  search.high = limit;
  search.base = unit > 0x01000000u ? unit - 0x01000000u : 0u;
  search.shift = bins == 8 ? 23u : 21u;
  search.fraction = 0u;
  search.target = 0u;
  return search;
}

// Rule 5 among the keys up to the limit.
INLINE Search search_of_top_p(Row row, DEVICE const float* rules, uint limit, int bins) {
  Search search = search_of(row, true, limit, bins);
  search.is_sought = rules[2] < 1.0f;
  search.fraction = fraction_of(rules[2]);
  return search;
}

// What rules 4 and 5 seek first; where they are off, a search for nothing.
INLINE Search first_search(Row row, DEVICE const float* rules, uint limit, int bins) {
  if (!(rules[1] >= 1.0f && rules[1] < float(row.count))) {
    return search_of_top_p(row, rules, limit, bins);
  }
  Search search = search_of(row, false, INFINITE_KEY, bins);
  search.is_sought = true;
  search.target = ulong(uint(rules[1]));
  return search;
}

// Whether there is nothing to leave out.
INLINE bool keeps_all(Search search) {
  return !search.is_sought && search.high >= INFINITE_KEY;
}

// Goes on in the bin where the target is reached; returns which.
INLINE int narrow(THREAD Search* search, THREADGROUP const ulong* amounts, int bins) {
  if (search->target == 0u) {
    ulong total = 0u;
    for (int b = 0; b < bins; ++b) {
      total += amounts[b];
    }
    const ulong share = share_of(total, search->fraction, true);
    search->target = share > 0u ? share : ulong(1);
  }
  int found = 0;
  while (found < bins - 1 && amounts[found] < search->target) {
    search->target -= amounts[found];
    ++found;
  }
  const uint first = search->base + (uint(found) << search->shift);
  const uint last = search->base + (uint(found + 1) << search->shift) - 1u;
  search->low = found > 0 && first > search->low ? first : search->low;
  search->high = found < bins - 1 && last < search->high ? last : search->high;
  return found;
}

// Lays the bins over what is left.
INLINE void spread(THREAD Search* search, int bins) {
  search->base = search->low;
  search->shift = 0u;
  while ((search->high - search->low) >> search->shift >= uint(bins)) {
    ++search->shift;
  }
}

INLINE int bin_of(Search search, uint key, int bins) {
  const uint bin = (key > search.base ? key - search.base : 0u) >> search.shift;
  return int(bin < uint(bins) ? bin : uint(bins) - 1u);
}

INLINE void clear_bins(Place place, THREADGROUP ulong* memory) {
  UNROLL for (int b = 0; b < BINS; ++b) {
    memory[b * THREADS + place.index] = 0u;
  }
}

// The sum of all threads' bins of one number; for the lanes of the simd-group that calls it.
INLINE ulong sum_of_bin(Place place, THREADGROUP const ulong* memory, int bin) {
  ulong sum = 0u;
  UNROLL for (int t = 0; t < THREADS; t += LANES) {
    sum += memory[bin * THREADS + t + place.lane];
  }
  return sum_of_lanes(sum);
}

// Adds up the parts' bins, of which there is one for each lane: SAMPLE_PART_BINS numbers in memory.
INLINE void sum_parts(Place place, DEVICE const ulong* bins, int parts, THREADGROUP ulong* memory) {
  ulong sum = 0u;
  for (int p = place.simdgroup; p < parts; p += SIMDGROUPS) {
    sum += bins[p * SAMPLE_PART_BINS + place.lane];
  }
  memory[(place.simdgroup + 1) * LANES + place.lane] = sum;
  THREADGROUP_BARRIER();
  if (place.simdgroup == 0) {
    sum = 0u;
    UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
      sum += memory[(s + 1) * LANES + place.lane];
    }
    memory[place.lane] = sum;
  }
  THREADGROUP_BARRIER();
}
