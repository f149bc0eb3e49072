// The last launch of the sampling op: one token per row of logits, without a sort. One threadgroup per
// row ends the search for the thresholds, which sample_parts.h began, by cutting a range of keys in
// eight, each thread with bins of its own; then draws, by narrowing a range of tokens. The search
// looks at the candidates alone, unless some part has more than there is room for.
#define SIMDGROUPS 16
#define BINS 8
#include "sampling.h"

// Chunks that a thread has under way: alone on its multiprocessor, a threadgroup waits for memory.
// Their logits have a bit each in a word.
#define AHEAD 4

// What the launches before found in the parts of a row.
struct Found {
  DEVICE const ulong* bins[SAMPLE_ROUNDS];
  int before[SAMPLE_ROUNDS];  // bins whose tokens are all kept, and added up
  int parts;
};

// What the draw needs to know of the keys.
struct Kept {
  uint limit;     // the largest that is kept
  uint unsummed;  // the smallest that is in none of the bins that are added up
};

INLINE uint largest_of_lanes(uint value) {
  UNROLL for (int mask = LANES / 2; mask > 0; mask /= 2) {
    const uint other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// As `within`, of a thread's chunks `first`, `first + stride`, ...; the chunks after them are fetched to
// `next`. Few keys are: where each lane had its own branch for each logit, all lanes would go through
// nearly all.
INLINE uint next_within(Row row, uint low, uint high, int first, int stride, int end,
                        THREAD uint4* next) {
  uint bits = 0u;
  UNROLL for (int a = 0; a < AHEAD; ++a) {
    const uint found = within(row, next[a], low, high);
    next[a] = load_chunk(row, first + (a + AHEAD) * stride, end);
    bits |= first + a * stride < end ? found << (a * VECTOR_ELEMENTS) : 0u;
  }
  return bits;
}

// Takes one of the bits; returns its logit.
INLINE float take(Row row, int first, int stride, THREAD uint* bits) {
  const int bit = highest_bit(*bits);
  *bits ^= 1u << bit;
  const int chunk = first + bit / VECTOR_ELEMENTS * stride;
  return value_at(row, chunk * VECTOR_ELEMENTS + bit % VECTOR_ELEMENTS);
}

// Cuts the search's range in bins, goes on in one, and tightens it to the keys that there are.
INLINE void cut(Place place, Row row, THREAD Search* search, THREADGROUP ulong* memory) {
  clear_bins(place, memory);
  uint least = NO_KEY, largest = 0u;
  uint4 next[AHEAD];
  UNROLL for (int a = 0; a < AHEAD; ++a) {
    next[a] = load_chunk(row, place.index + a * THREADS, row.chunks);
  }
  for (int first = place.index; first < row.chunks; first += AHEAD * THREADS) {
    uint bits = next_within(row, search->low, search->high, first, THREADS, row.chunks, next);
    while (bits != 0u) {
      const uint key = key_of(row, take(row, first, THREADS, &bits));
      memory[bin_of(*search, key, BINS) * THREADS + place.index] +=
          search->is_weighted ? weight_of(depth_of(row, key)) : ulong(1);
      least = key < least ? key : least;
      largest = key > largest ? key : largest;
    }
  }
  least = NO_KEY - largest_of_lanes(NO_KEY - least);
  largest = largest_of_lanes(largest);
  THREADGROUP_BARRIER();
  const ulong sum = sum_of_bin(place, memory, place.simdgroup % BINS);
  THREADGROUP_BARRIER();
  if (place.lane == 0) {
    if (place.simdgroup < BINS) {
      memory[place.simdgroup] = sum;
    }
    memory[BINS + place.simdgroup] = (ulong(least) << 32) | ulong(largest);
  }
  THREADGROUP_BARRIER();
  narrow(search, memory, BINS);
  UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
    const uint first = uint(memory[BINS + s] >> 32), last = uint(memory[BINS + s]);
    least = first < least ? first : least;
    largest = last > largest ? last : largest;
  }
  search->low = least > search->low ? least : search->low;
  search->high = largest < search->high ? largest : search->high;
  spread(search, BINS);
  THREADGROUP_BARRIER();
}

// The largest key of the same depth as the one that the search ends at.
INLINE uint last_key_of(Place place, Row row, Search search, THREADGROUP ulong* memory) {
  while (search.low < search.high) {
    cut(place, row, &search, memory);
  }
  return last_key_within(row, depth_of(row, search.low));
}

// The row as those see it who look at candidates alone; the row itself if they do not fit.
INLINE Row candidates_of(Place place, Row row, DEVICE const uint4* candidates,
                         DEVICE const int* counts, int parts) {
  uint most = 0u;
  for (int p = place.lane; p < parts; p += LANES) {
    const uint count = uint(counts[p]);
    most = count > most ? count : most;
  }
  if (int(largest_of_lanes(most)) <= SAMPLE_CANDIDATE_CHUNKS * VECTOR_ELEMENTS) {
    row.logits = (DEVICE const LOGIT*)candidates;
    row.chunks = parts * SAMPLE_CANDIDATE_CHUNKS;
    row.part_chunks = SAMPLE_CANDIDATE_CHUNKS;
    row.by_vectors = true;
  }
  return row;
}

// Rules 4 to 6: `limit` is the last one's, `search` the first. Which of the parts' bins are all kept is
// written to `found`.
INLINE Kept find_kept(Place place, Row row, DEVICE const float* rules, uint limit, Search search,
                      THREAD Found* found, THREADGROUP ulong* memory) {
  Kept kept;
  kept.limit = limit;
  UNROLL for (int r = 0; r < SAMPLE_ROUNDS; ++r) {
    found->before[r] = r == 0 ? SAMPLE_PART_BINS : 0;
  }
  if (!search.is_sought) {
    kept.unsummed = INFINITE_KEY + 1u;
    return kept;
  }
  UNROLL for (int r = 0; r < SAMPLE_ROUNDS; ++r) {
    sum_parts(place, found->bins[r], found->parts, memory);
    found->before[r] = narrow(&search, memory, SAMPLE_PART_BINS);
    spread(&search, SAMPLE_PART_BINS);
    THREADGROUP_BARRIER();
  }
  kept.unsummed = search.low;
  spread(&search, BINS);
  const uint last = last_key_of(place, row, search, memory);
  kept.limit = last < kept.limit ? last : kept.limit;
  if (!search.is_weighted) {  // the bins counted tokens
    UNROLL for (int r = 0; r < SAMPLE_ROUNDS; ++r) {
      found->before[r] = 0;
    }
    kept.unsummed = 0u;
    const Search second = search_of_top_p(row, rules, kept.limit, BINS);
    if (second.is_sought) {
      kept.limit = last_key_of(place, row, second, memory);
    }
  }
  return kept;
}

// Weights of the kept tokens of each part to memory; returns the least logit that is kept, as `ordered`.
INLINE uint sum_kept(Place place, Row row, Kept kept, Found found, THREADGROUP ulong* memory) {
  uint least = NO_KEY;
  const bool has_all = kept.limit >= INFINITE_KEY && kept.unsummed > INFINITE_KEY;
  // The least logit is among those that are not yet summed, unless all are.
  const uint lowest = kept.unsummed > INFINITE_KEY ? 0u : kept.unsummed;
  for (int p = place.simdgroup; p < found.parts; p += SIMDGROUPS) {
    ulong sum = 0u;
    UNROLL for (int r = 0; r < SAMPLE_ROUNDS; ++r) {
      if (place.lane < found.before[r]) {
        sum += found.bins[r][p * SAMPLE_PART_BINS + place.lane];
      }
    }
    const int begin = p * row.part_chunks + place.lane;
    const int end = end_of_part(row, p);
    uint4 next[AHEAD];
    UNROLL for (int a = 0; a < AHEAD; ++a) {
      next[a] = load_chunk(row, begin + a * LANES, end);
    }
    for (int first = begin; first < end && !has_all; first += AHEAD * LANES) {
      uint bits = next_within(row, lowest, kept.limit, first, LANES, end, next);
      while (bits != 0u) {
        const float value = take(row, first, LANES, &bits);
        const uint key = key_of(row, value), logit = ordered(value);
        least = logit < least ? logit : least;
        if (key >= kept.unsummed) {
          sum += weight_of(depth_of(row, key));
        }
      }
    }
    sum = sum_of_lanes(sum);
    if (place.lane == 0) {
      memory[p] = sum;
    }
  }
  least = NO_KEY - largest_of_lanes(NO_KEY - least);
  if (place.lane == 0) {
    memory[found.parts + place.simdgroup] = ulong(least);
  }
  THREADGROUP_BARRIER();
  UNROLL for (int s = 0; s < SIMDGROUPS; ++s) {
    const uint other = uint(memory[found.parts + s]);
    least = other < least ? other : least;
  }
  return least;
}

// The first of the pieces at which the sum exceeds `below`, from which those before it are taken.
INLINE int choose(THREADGROUP const ulong* sums, int pieces, THREAD ulong* below) {
  int chosen = 0;
  while (chosen < pieces - 1 && sums[chosen] <= *below) {
    *below -= sums[chosen];
    ++chosen;
  }
  return chosen;
}

// Rule 7; memory has the sums of the parts.
INLINE int draw(Place place, Row row, Kept kept, uint fraction, int parts,
                THREADGROUP ulong* memory) {
  ulong total = 0u;
  for (int p = 0; p < parts; ++p) {
    total += memory[p];
  }
  ulong below = share_of(total, fraction, false);
  const int part = choose(memory, parts, &below);
  int begin = part * row.part_chunks;
  int end = end_of_part(row, part);
  THREADGROUP_BARRIER();
  while (end - begin > 1) {
    const int piece = (end - begin + SIMDGROUPS - 1) / SIMDGROUPS;
    const int own = begin + place.simdgroup * piece;
    const int own_end = own + piece < end ? own + piece : end;
    ulong sum = 0u;
    for (int chunk = own + place.lane; chunk < own_end; chunk += LANES) {
      float values[VECTOR_ELEMENTS];
      unpack(load_chunk(row, chunk, own_end), values);
      UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
        const uint key = key_of(row, values[e]);
        if (key <= kept.limit) {
          sum += weight_of(depth_of(row, key));
        }
      }
    }
    sum = sum_of_lanes(sum);
    if (place.lane == 0) {
      memory[place.simdgroup] = sum;
    }
    THREADGROUP_BARRIER();
    begin += choose(memory, SIMDGROUPS, &below) * piece;
    end = begin + piece < end ? begin + piece : end;
    THREADGROUP_BARRIER();
  }
  float values[VECTOR_ELEMENTS];
  unpack(load_chunk(row, begin, end), values);
  int token = -1;
  UNROLL for (int e = 0; e < VECTOR_ELEMENTS; ++e) {
    const uint key = key_of(row, values[e]);
    const ulong weight = key <= kept.limit ? weight_of(depth_of(row, key)) : ulong(0);
    if (token < 0 && weight > below) {
      token = begin * VECTOR_ELEMENTS + e;
    }
    below -= token < 0 ? weight : ulong(0);
  }
  return token;
}

KERNEL(NAMED(sample))(
    DEVICE const LOGIT* logits BUFFER(0),
    DEVICE const float* rules BUFFER(1),
    DEVICE const ulong* extents BUFFER(2),
    DEVICE const ulong* bins BUFFER(3),
    DEVICE const ulong* finer_bins BUFFER(4),
    DEVICE const uint4* candidates BUFFER(5),
    DEVICE const int* candidate_counts BUFFER(6),
    DEVICE int* tokens BUFFER(7),
    DEVICE uchar* finite BUFFER(8),
    DEVICE float* least BUFFER(9),
    PARAMETERS(SampleParams, 10)) {
  THREADGROUP ulong* memory = (THREADGROUP ulong*)THREADGROUP_MEMORY;
  const Place place = {THREAD_INDEX, LANE, SIMDGROUP};
  const long first_part = long(GROUP_X) * params.parts;
  const Extent extent = extent_of_parts(place, extents + 2 * first_part, params.parts);
  const uint largest = uint(extent.best >> 32);
  int token = has_none(extent) ? 0 : int(NO_KEY - uint(extent.best));
  uint least_kept = ORDERED_MINUS_INFINITY;
  DEVICE const float* own = rules + long(GROUP_X) * SAMPLE_RULES;
  const bool has_rules = GROUP_X < params.rule_rows;
  Row row = row_of(logits, GROUP_X, params);
  if (has_rules && is_drawn(extent, own, &row)) {
    Found found;
    found.bins[0] = bins + first_part * SAMPLE_PART_BINS;
    found.bins[1] = finer_bins + first_part * SAMPLE_PART_BINS;
    found.parts = params.parts;
    const uint limit = limit_of_min_p(row, own);
    const Search search = first_search(row, own, limit, SAMPLE_PART_BINS);
    const Row open =
        keeps_all(search)
            ? row
            : candidates_of(place, row, candidates + first_part * SAMPLE_CANDIDATE_CHUNKS,
                            candidate_counts + first_part, params.parts);
    const Kept kept = find_kept(place, open, own, limit, search, &found, memory);
    least_kept = sum_kept(place, open, kept, found, memory);
    least_kept = least_kept < NO_KEY ? least_kept : extent.smallest;
    token = draw(place, row, kept, fraction_of(own[4]), params.parts, memory);
  }
  if (place.index == 0) {
    tokens[GROUP_X] = token;
    finite[GROUP_X] =
        extent.smallest > ORDERED_MINUS_INFINITY && largest < ORDERED_INFINITY ? 1 : 0;
    least[GROUP_X] = from_ordered(least_kept);
  }
}
