// What a threadgroup of paged attention works on. Part of attention.h, compiled for CHUNK: no guard.
#include "dialect.h"
#include "params.h"

// A table entry that names no block of the pool.
#define HOLE -1

// A tile of rows of one sequence.
struct Work {
  int sequence;
  int row;       // of q: the tile's first
  int rows;      // 0: nothing to do
  int position;  // of the first row
};

// Positions begin to end - 1 of the tile's sequence.
struct Part {
  int index;
  int count;        // parts that the tile has
  int begin;
  int end;
  int first_entry;  // of the table, that the part needs
};

INLINE Work find_work(DEVICE const int* query_start, DEVICE const int* context_len, int tile,
                      CONSTANT const AttentionParams& params) {
  int sequence = tile;
#if CHUNK
  // Sequence s has the tiles from query_start[s] / tile_rows + s on, which leaves room for all.
  int last = params.num_sequences - 1;
  sequence = 0;
  while (sequence < last) {
    const int middle = (sequence + last + 1) / 2;
    if (query_start[middle] / params.tile_rows + middle <= tile) {
      sequence = middle;
    } else {
      last = middle - 1;
    }
  }
#endif
  Work work;
  const int first = query_start[sequence];
  const int count = query_start[sequence + 1] - first;
  int skipped = 0;
#if CHUNK
  skipped = (tile - first / params.tile_rows - sequence) * params.tile_rows;
  work.rows = count > 1 ? max(min(params.tile_rows, count - skipped), 0) : 0;
#else
  work.rows = count == 1 ? 1 : 0;
#endif
  work.sequence = sequence;
  work.row = first + skipped;
  work.position = context_len[sequence] - count + skipped;
  return work;
}

INLINE Part find_part(Work work, int index, CONSTANT const AttentionParams& params) {
  const int end = max(work.position + work.rows, 0);
  const int begin = params.window > 0 ? max(work.position + 1 - params.window, 0) : 0;
  Part part;
  part.index = index;
  part.count = (end - begin + params.part_size - 1) / params.part_size;
  part.begin = min(begin + index * params.part_size, end);
  part.end = min(part.begin + params.part_size, end);
  part.first_entry = part.begin >> params.block_shift;
  return part;
}

INLINE void load_table(THREADGROUP int* entries, DEVICE const int* table, Part part, int thread_number,
                       CONSTANT const AttentionParams& params) {
  const int count = ((part.end + (1 << params.block_shift) - 1) >> params.block_shift) -
      part.first_entry;
  for (int i = thread_number; i < count; i += THREADS) {
    const int at = part.first_entry + i;
    const int block = at < params.max_blocks ? table[at] : HOLE;
    entries[i] = block < params.num_blocks ? max(block, HOLE) : HOLE;
  }
}
