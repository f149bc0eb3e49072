// Copies of blocks inside a pool, by way of scratch memory: all sources are read before any
// destination is written. Two launches; one threadgroup per (piece of a block, pair).
#include "dialect.h"
#include "params.h"

INLINE bool is_block(int block, int num_blocks) {
  return block >= 0 && block < num_blocks;
}

KERNEL(copy_blocks_read)(
    DEVICE const uint4* pool BUFFER(0),
    DEVICE const int* sources BUFFER(1),
    DEVICE const int* destinations BUFFER(2),
    DEVICE uint4* scratch BUFFER(3),
    PARAMETERS(CopyParams, 4)) {
  const int pair = GROUP_Y;
  const int i = GROUP_X * THREADS + THREAD_INDEX;
  if (i < params.block_vectors && is_block(sources[pair], params.num_blocks) &&
      is_block(destinations[pair], params.num_blocks)) {
    scratch[long(pair) * params.block_vectors + i] =
        pool[long(sources[pair]) * params.block_vectors + i];
  }
}

KERNEL(copy_blocks_write)(
    DEVICE const uint4* scratch BUFFER(0),
    DEVICE const int* sources BUFFER(1),
    DEVICE const int* destinations BUFFER(2),
    DEVICE uint4* pool BUFFER(3),
    PARAMETERS(CopyParams, 4)) {
  const int pair = GROUP_Y;
  const int i = GROUP_X * THREADS + THREAD_INDEX;
  if (i < params.block_vectors && is_block(sources[pair], params.num_blocks) &&
      is_block(destinations[pair], params.num_blocks)) {
    pool[long(destinations[pair]) * params.block_vectors + i] =
        scratch[long(pair) * params.block_vectors + i];
  }
}
