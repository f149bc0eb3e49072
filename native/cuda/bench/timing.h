// What the programs of this folder share: memory, the embedded kernels, and the time of calls that are
// replayed as a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/kernel_table.h"

namespace bench {

constexpr size_t rotated_bytes = 220'000'000;  // more than any second-level cache

inline void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(result));
    std::exit(2);
  }
}
#define CHECK(call) bench::check(call, #call)

template <class T>
T* device_array(size_t count) {
  T* data = nullptr;
  CHECK(cudaMalloc(&data, count * sizeof(T)));
  return data;
}

template <class T>
T* uploaded(const std::vector<T>& values) {
  T* data = device_array<T>(values.size());
  CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

template <class T>
std::vector<T> downloaded(const T* data, size_t count) {
  std::vector<T> values(count);
  CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

// The kernel `name` of the embedded fatbin `file`.
inline cudaKernel_t kernel_of(const std::string& file, const std::string& name) {
  for (const auto* entry = mlxrt::cuda::fatbins; entry->name; ++entry) {
    if (file == entry->name) {
      cudaLibrary_t library;
      cudaKernel_t kernel;
      CHECK(cudaLibraryLoadData(&library, entry->data, nullptr, nullptr, 0, nullptr, nullptr, 0));
      CHECK(cudaLibraryGetKernel(&kernel, library, name.c_str()));
      return kernel;
    }
  }
  std::fprintf(stderr, "no kernels called %s in this build\n", file.c_str());
  std::exit(2);
}

// Launches a kernel with the geometry of launch.h; `arguments` point at its buffers' addresses and its
// params.
template <class Grid>
void launch(cudaKernel_t kernel, const Grid& grid, int threads, int threadgroup_bytes,
            std::vector<void*> arguments, cudaStream_t stream) {
  CHECK(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.x, grid.y, grid.z),
                         dim3(threads), arguments.data(), threadgroup_bytes, stream));
}

struct Times {
  float median_us;
  float least_us;
};

// Of one of `calls` calls of `add(call, stream)`, captured as one graph and replayed: `replays` count,
// after two that do not.
template <class F>
Times time_of(int calls, int replays, F add) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int call = 0; call < calls; ++call) {
    add(call, stream);
  }
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<float> times;
  for (int replay = 0; replay < replays + 2; ++replay) {
    float milliseconds = 0;
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (replay >= 2) {
      times.push_back(milliseconds * 1000.0f / static_cast<float>(calls));
    }
  }
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  CHECK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

} // namespace bench
