#pragma once

// The pool owns its worker threads; they run nothing but parallel_for bodies. Any thread may call
// parallel_for, several at once too; bodies must not call it again.

#include <cstdint>

namespace mlxrt {

// Threads that a parallel_for may use, the calling one included.
int num_threads();

// Sets that number, at least 1. Takes effect from the next parallel_for on.
void set_num_threads(int count);

using LoopBody = void (*)(void* context, int64_t index);

// Calls body(context, i) once for every i in [0, count) and returns when all are done. The order
// and the thread of each index are unspecified; bodies must not throw.
void parallel_for(int64_t count, LoopBody body, void* context);

template <class F>
void parallel_for(int64_t count, F f) {
  auto call = [](void* context, int64_t index) { (*static_cast<F*>(context))(index); };
  parallel_for(count, call, &f);
}

} // namespace mlxrt
