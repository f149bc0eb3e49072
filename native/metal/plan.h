// What each op hands to Metal: kernels, bindings, geometry, scratch. Plain C++, so that the emulator
// runs the very plan that the host encodes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/gpu/launch.h"

namespace mlxrt::metal {

enum class Use {
  absent,  // the kernel has the parameter and does not touch it in this call
  read,
  // Read, and written in place by a later op: Metal's fences between command buffers know only who
  // wrote, so that the write must find this as one.
  read_in_place,
  write,
};

// An array of the op: its inputs in order, then its outputs, then the plan's scratch.
struct Binding {
  int array;
  Use use;
};

// One launch.
struct Dispatch {
  std::string kernel;
  std::string library;  // names the text: what it was made of and for
  std::string file;     // of kernels/gpu
  std::string constants;
  std::vector<Binding> buffers = {};  // by index
  std::vector<uint8_t> params = {};   // bound after them; 4-byte numbers
  gpu::Grid grid = {};
  int threads = 128;  // of a threadgroup
  int threadgroup_bytes = 16;

  // The MSL that Metal's compiler gets.
  std::string text() const;
};

struct Plan {
  std::vector<int64_t> scratch_bytes;
  std::vector<Dispatch> dispatches;
};

// Cores of a GPU that MLX calls by this name ("applegpu_g13s"). Metal tells no number: the last letter
// tells the class, of which this is the middle; 32, a large one, where it is not known.
int cores_of(std::string_view architecture);

// Arrays: q, k_pool, v_pool, block_tables, query_start, context_len, sinks if there are any; output.
// Throws std::runtime_error if no kernel serves the call.
Plan plan_paged_attention(const gpu::AttentionShape& shape);

// Arrays: k_pool, v_pool, keys, values, slots; the two pools again as outputs.
struct WriteShape {
  int64_t rows;
  int64_t slots;  // of the pools
  int64_t key_bytes;  // of a row, all heads
  int64_t value_bytes;
};
Plan plan_kv_write(const WriteShape& shape);

// Arrays: the pools, sources, destinations; the pools again as outputs.
struct CopyShape {
  int64_t pairs;
  int64_t num_blocks;
  std::vector<int64_t> block_bytes;  // of each pool
};
Plan plan_copy_blocks(const CopyShape& shape);

// Arrays: qkv, positions, inverse_frequencies, slots, k_pool, v_pool, q_norm and k_norm if there are
// any; queries and the two pools again as outputs. These three throw std::runtime_error if no kernel
// serves the call.
Plan plan_norm_rope_write(const gpu::NormRopeShape& shape);

// Arrays: x, residual, weight; the sum and its norm as outputs.
Plan plan_add_rms_norm(const gpu::RowShape& shape);

// Arrays: gate_up; the output.
Plan plan_swiglu(const gpu::RowShape& shape);

// Arrays: logits, rules; tokens, finite and least as outputs.
Plan plan_sample(const gpu::SampleShape& shape);

} // namespace mlxrt::metal
