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
  const int end = end_of_part(row, GROUP_X);
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

// A thread's chunks of a part.
#define OWN_CHUNKS (SAMPLE_PART_CHUNKS / THREADS)
#if SAMPLE_CANDIDATE_CHUNKS != THREADS
#error "a thread takes one chunk of candidates"
#endif
#define CANDIDATES (SAMPLE_CANDIDATE_CHUNKS * VECTOR_ELEMENTS)

// Adds a chunk's tokens, each to the bin of its key where it lies within the search's range.
INLINE void add_to_bins(Place place, Row row, Search search, uint4 chunk, THREADGROUP ulong* memory) {
  float values[VECTOR_ELEMENTS];
  unpack(chunk, values);
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

INLINE void add_part_to_bins(Place place, Row row, Search search, int begin, int end,
                             THREADGROUP ulong* memory) {
  uint4 next = load_chunk(row, begin + place.index, end);
  for (int chunk = begin + place.index; chunk < end; chunk += THREADS) {
    const uint4 own = next;
    next = load_chunk(row, chunk + THREADS, end);
    add_to_bins(place, row, search, own, memory);
  }
}

// The sums over all threads, once all have added.
INLINE void write_bins(Place place, THREADGROUP const ulong* memory, DEVICE ulong* own) {
  THREADGROUP_BARRIER();
  for (int b = place.simdgroup; b < BINS; b += SIMDGROUPS) {
    const ulong sum = sum_of_bin(place, memory, b);
    if (place.lane == 0) {
      own[b] = sum;
    }
  }
}

// What lies in the bins of the row's first search: weights, or tokens where it counts those. Without
// a search the bins are for their sum.
KERNEL(NAMED(sample_bins))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE const float* rules BUFFER(1),
    DEVICE const ulong* extents BUFFER(2),
    DEVICE ulong* bins BUFFER(3),
    PARAMETERS(SampleParams, 4)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  const Place place = {THREAD_INDEX, LANE, SIMDGROUP};
  const long first_part = long(GROUP_Y) * params.parts;
  DEVICE const float* own_rules = rules + long(GROUP_Y) * SAMPLE_RULES;
  Row row = row_of(logits, GROUP_Y, params);
  if (!is_drawn(extent_of_parts(place, extents + 2 * first_part, params.parts), own_rules, &row)) {
    return;
  }
  const Search search = first_search(row, own_rules, limit_of_min_p(row, own_rules), BINS);
  clear_bins(place, memory);
  const int begin = GROUP_X * SAMPLE_PART_CHUNKS;
  const int end = end_of_part(row, GROUP_X);
  add_part_to_bins(place, row, search, begin, end, memory);
  write_bins(place, memory, bins + (first_part + GROUP_X) * BINS);
}

// The bits of logit `e` of a chunk.
INLINE uint logit_of(uint4 chunk, int e) {
  const uint words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#if ELEMENT == 0
  return words[e];
#else
  return (words[e / 2] >> (16 * (e % 2))) & 0xffffu;
#endif
}

// What the threads before this one have; `total` becomes what all have.
INLINE int sum_before(Place place, THREAD int* total, THREADGROUP ulong* memory) {
  uint before = 0u, together = uint(*total);
  UNROLL for (int mask = 1; mask < LANES; mask *= 2) {
    const uint other = shuffle_xor(together, mask);
    before += (place.lane & mask) != 0 ? other : 0u;
    together += other;
  }
  if (place.lane == 0) {
    memory[place.simdgroup] = ulong(together);
  }
  THREADGROUP_BARRIER();
  *total = 0;
  UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
    before += s < place.simdgroup ? uint(memory[s]) : 0u;
    *total += int(memory[s]);
  }
  return int(before);
}

// Lists the logits of a part with keys from `low` to `high`, as many as there is room for, and padding
// behind them; returns how many there are. `memory` is for sums.
INLINE int gather(Place place, Row row, uint low, uint high, int begin, int end,
                  THREADGROUP LOGIT* list, THREADGROUP ulong* memory) {
  uint4 chunks[OWN_CHUNKS];
  UNROLL for (int c = 0; c < OWN_CHUNKS; ++c) {
    chunks[c] = load_chunk(row, begin + c * THREADS + place.index, end);
  }
  int total = 0;
  uint is_candidate[OWN_CHUNKS];  // a bit for each logit
  UNROLL for (int c = 0; c < OWN_CHUNKS; ++c) {
    const bool is_own = begin + c * THREADS + place.index < end;
    is_candidate[c] = is_own ? within(row, chunks[c], low, high) : 0u;
    total += count_bits(is_candidate[c]);
  }
  int at = sum_before(place, &total, memory);
  UNROLL for (int c = 0; c < OWN_CHUNKS; ++c) {
    UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
      const bool is_there = ((is_candidate[c] >> e) & 1u) != 0u;
      if (is_there && at < CANDIDATES) {
        list[at] = LOGIT(logit_of(chunks[c], e));
      }
      at += is_there ? 1 : 0;
    }
  }
  for (int i = total + place.index; i < CANDIDATES; i += THREADS) {
    list[i] = LOGIT(row.padding);
  }
  THREADGROUP_BARRIER();
  return total;
}

// Cuts the bin where the first search's target lies into bins of its own, and writes down the tokens
// that the last launch still has to look at: of weights those in that bin; where tokens are counted,
// and with min-p alone, those before it too.
KERNEL(NAMED(sample_candidates))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE const float* rules BUFFER(1),
    DEVICE const ulong* extents BUFFER(2),
    DEVICE const ulong* bins BUFFER(3),
    DEVICE ulong* finer_bins BUFFER(4),
    DEVICE uint4* candidates BUFFER(5),
    DEVICE int* candidate_counts BUFFER(6),
    PARAMETERS(SampleParams, 7)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  const Place place = {THREAD_INDEX, LANE, SIMDGROUP};
  const long first_part = long(GROUP_Y) * params.parts;
  DEVICE const float* own_rules = rules + long(GROUP_Y) * SAMPLE_RULES;
  Row row = row_of(logits, GROUP_Y, params);
  if (!is_drawn(extent_of_parts(place, extents + 2 * first_part, params.parts), own_rules, &row)) {
    return;
  }
  Search search = first_search(row, own_rules, limit_of_min_p(row, own_rules), BINS);
  if (keeps_all(search)) {
    return;
  }
  if (search.is_sought) {
    sum_parts(place, bins + first_part * BINS, params.parts, memory);
    narrow(&search, memory, BINS);
    spread(&search, BINS);
  }
  const long part = first_part + GROUP_X;
  const int begin = GROUP_X * SAMPLE_PART_CHUNKS;
  const int end = end_of_part(row, GROUP_X);
  const uint low = search.is_sought && search.is_weighted ? search.low : 0u;
  THREADGROUP ulong* behind = memory + 2 * SAMPLE_CANDIDATE_CHUNKS;  // and behind the sums
  const int count =
      gather(place, row, low, search.high, begin, end, (THREADGROUP LOGIT*)memory, behind);
  const uint4 own = ((THREADGROUP const uint4*)memory)[place.index];
  candidates[part * SAMPLE_CANDIDATE_CHUNKS + place.index] = own;
  if (place.index == 0) {
    candidate_counts[part] = count;
  }
  if (!search.is_sought) {
    return;
  }
  THREADGROUP_BARRIER();
  clear_bins(place, memory);
  if (count > CANDIDATES) {
    add_part_to_bins(place, row, search, begin, end, memory);
  } else if (place.index * VECTOR_ELEMENTS < count) {
    add_to_bins(place, row, search, own, memory);
  }
  write_bins(place, memory, finer_bins + part * BINS);
}
