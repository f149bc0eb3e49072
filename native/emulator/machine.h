// What the emulated kernels and the emulating header see of the machine. See README.md.
#pragma once

namespace emulator {

enum Memory : unsigned { memory_none = 0, memory_device = 1, memory_threadgroup = 2 };

// The built-in values of one thread.
struct Ids {
  unsigned thread_position_in_grid[3];
  unsigned threads_per_grid[3];
  unsigned threadgroup_position_in_grid[3];
  unsigned threadgroups_per_grid[3];
  unsigned thread_position_in_threadgroup[3];
  unsigned threads_per_threadgroup[3];
  unsigned thread_index_in_threadgroup;
  unsigned thread_index_in_simdgroup;
  unsigned simdgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup;
};

// A kernel: buffers[i] is what was bound to index i, threadgroup the threadgroup memory.
using Entry = void (*)(void* const* buffers, void* threadgroup, const Ids& ids);

// Waits for all threads of the threadgroup, or of the simd-group, at the same line; accesses to the
// kinds of memory in `flags` before it are ordered before those after it.
void threadgroup_wait(unsigned flags, int line);
void simdgroup_wait(unsigned flags, int line);

constexpr unsigned lanes = 32;
constexpr unsigned lane_value_bytes = 16;

// Gives `value` (`bytes` long) to the simd-group and returns in `all` what every lane gave. All 32
// lanes must take part with the same operation, operand and line.
void simd_exchange(const char* operation, unsigned operand, int line, const void* value,
                   unsigned bytes, unsigned char (*all)[lane_value_bytes]);

unsigned lane_index();

// Ends the run with a report.
[[noreturn]] void fault(const char* what);

} // namespace emulator
