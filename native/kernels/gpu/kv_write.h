// Rows of keys and values to their slots of the pools, in place. One threadgroup per row.
#include "dialect.h"
#include "params.h"

// A negative slot skips its row; one past the pools is skipped too, and never written.
KERNEL(kv_write)(
    DEVICE const uint4* keys BUFFER(0),
    DEVICE const uint4* values BUFFER(1),
    DEVICE const long* slots BUFFER(2),
    DEVICE uint4* k_pool BUFFER(3),
    DEVICE uint4* v_pool BUFFER(4),
    PARAMETERS(WriteParams, 5)) {
  const long row = GROUP_X;
  const long slot = slots[row];
  if (slot < 0 || slot >= params.num_slots) {
    return;
  }
  for (int i = THREAD_INDEX; i < params.key_vectors; i += THREADS) {
    k_pool[slot * params.key_vectors + i] = keys[row * params.key_vectors + i];
  }
  for (int i = THREAD_INDEX; i < params.value_vectors; i += THREADS) {
    v_pool[slot * params.value_vectors + i] = values[row * params.value_vectors + i];
  }
}
