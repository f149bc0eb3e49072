// Kernels that move and do not compute, and one that is a place in the order of a graph.
#include "copy_blocks.h"
#include "kv_write.h"

extern "C" __global__ void hold_pools() {}
// Between pinned memory and the device's: MLX's graphs hold kernels alone.
template <class Piece>
__device__ void copy_pieces(const Piece* from, Piece* to, unsigned int count) {
  for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * blockDim.x) {
    to[i] = from[i];
  }
}

extern "C" __global__ void copy_vectors(const uint4* from, uint4* to, unsigned int count) {
  copy_pieces(from, to, count);
}

extern "C" __global__ void copy_bytes(const unsigned char* from, unsigned char* to,
                                      unsigned int count) {
  copy_pieces(from, to, count);
}
