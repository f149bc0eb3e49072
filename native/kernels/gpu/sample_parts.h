// The first launches of the sampling op: every row in parts, a threadgroup each, so that one row keeps
// a whole GPU busy where every logit must be looked at. What a part finds goes to scratch.
#define SIMDGROUPS 4
#define BINS SAMPLE_PART_BINS
#include "sampling.h"

// The largest logit of a part with its first index, and the least: two numbers.
KERNEL(NAMED(sample_extent))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE ulong* extents BUFFER(1),
    PARAMETERS(SampleParams, 2)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  const Place place = {THREAD_INDEX, LANE, SIMDGROUP};
  Row row = row_of(logits, GROUP_Y, params);
  row.padding = uint(row.logits[row.count - 1]);
  const int begin = GROUP_X * SAMPLE_PART_CHUNKS;
  const int end = begin + SAMPLE_PART_CHUNKS < row.chunks ? begin + SAMPLE_PART_CHUNKS : row.chunks;
  uint largest = 0u;
  int index = 0;
  uint smallest = NO_KEY;
  uint4 next = load_chunk(row, begin + place.index, end);
  for (int chunk = begin + place.index; chunk < end; chunk += THREADS) {
    float values[VECTOR_ELEMENTS];
    unpack(next, values);
    next = load_chunk(row, chunk + THREADS, end);
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      const uint logit = ordered(values[e]);
      const bool is_larger = logit > largest;
      largest = is_larger ? logit : largest;
      index = is_larger ? chunk * VECTOR_ELEMENTS + e : index;
      smallest = logit < smallest ? logit : smallest;
    }
  }
  Extent extent = {(ulong(largest) << 32) | ulong(NO_KEY - uint(index)), smallest};
  extent = extent_of_lanes(extent);
  if (place.lane == 0) {
    memory[2 * place.simdgroup] = extent.best;
    memory[2 * place.simdgroup + 1] = ulong(extent.smallest);
  }
  THREADGROUP_BARRIER();
  if (place.index == 0) {
    UNROLL for (int s = 1; s < SIMDGROUPS; ++s) {
      extent = wider(extent, memory[2 * s], uint(memory[2 * s + 1]));
    }
    DEVICE ulong* own = extents + 2 * (long(GROUP_Y) * params.parts + GROUP_X);
    own[0] = extent.best;
    own[1] = ulong(extent.smallest);
  }
}

// What lies in the bins of the row's first search: weights, or tokens where it counts those. Round 1
// cuts the bin that round 0 found. Without a search the bins of round 0 are for their sum.
KERNEL(NAMED(sample_bins))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE const float* rules BUFFER(1),
    DEVICE const ulong* extents BUFFER(2),
    DEVICE const ulong* before BUFFER(3),
    DEVICE ulong* bins BUFFER(4),
    PARAMETERS(SampleParams, 5)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  const Place place = {THREAD_INDEX, LANE, SIMDGROUP};
  const long first_part = long(GROUP_Y) * params.parts;
  DEVICE const float* own_rules = rules + long(GROUP_Y) * SAMPLE_RULES;
  const Extent extent = extent_of_parts(place, extents + 2 * first_part, params.parts);
  if (!(own_rules[0] > 0.0f) || has_none(extent)) {
    return;
  }
  Row row = row_of(logits, GROUP_Y, params);
  row.largest = from_ordered(uint(extent.best >> 32));
  row.temperature = own_rules[0];
  Search search = first_search(row, own_rules, limit_of_min_p(row, own_rules), BINS);
  if (params.round > 0) {
    if (!search.is_sought) {
      return;
    }
    sum_parts(place, before + first_part * BINS, params.parts, memory);
    narrow(&search, memory, BINS);
    spread(&search, BINS);
    THREADGROUP_BARRIER();
  }
  clear_bins(place, memory);
  const int begin = GROUP_X * SAMPLE_PART_CHUNKS;
  const int end = begin + SAMPLE_PART_CHUNKS < row.chunks ? begin + SAMPLE_PART_CHUNKS : row.chunks;
  uint4 next = load_chunk(row, begin + place.index, end);
  for (int chunk = begin + place.index; chunk < end; chunk += THREADS) {
    float values[VECTOR_ELEMENTS];
    unpack(next, values);
    next = load_chunk(row, chunk + THREADS, end);
    // Most tokens count: without branches the weights of a chunk are computed side by side.
    ulong amounts[VECTOR_ELEMENTS];
    uint keys[VECTOR_ELEMENTS];
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      const uint key = key_of(row, values[e]);
      const bool is_there = key >= search.low && key <= search.high;
      keys[e] = is_there ? key : search.low;
      amounts[e] = is_there ? 1u : 0u;
    }
    if (search.is_weighted) {
      UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
        const ulong weight = weight_of(depth_of(row, keys[e]));
        amounts[e] = amounts[e] > 0u ? weight : ulong(0);
      }
    }
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      memory[bin_of(search, keys[e], BINS) * THREADS + place.index] += amounts[e];
    }
  }
  THREADGROUP_BARRIER();
  for (int b = place.simdgroup; b < BINS; b += SIMDGROUPS) {
    const ulong sum = sum_of_bin(place, memory, b);
    if (place.lane == 0) {
      bins[(first_part + GROUP_X) * BINS + b] = sum;
    }
  }
}
