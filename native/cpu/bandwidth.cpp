#include "mlxrt/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "simd/dispatch.h"
#include "mlxrt/thread_pool.h"

namespace mlxrt {

double read_bandwidth(double gigabytes, int repeats, int threads) {
  if (!(gigabytes > 0.0) || repeats < 1 || threads < 1) {
    throw std::invalid_argument(
        "[read_bandwidth] gigabytes, repeats and threads must be positive");
  }
  constexpr int64_t chunk_bytes = 1 << 20;
  const int64_t chunks = std::max<int64_t>(threads, gigabytes * 1e9 / chunk_bytes);
  // Written once, so that every memory page of the operating system is a page of its own.
  std::unique_ptr<char[]> data(new char[chunks * chunk_bytes]);
  std::memset(data.get(), 1, chunks * chunk_bytes);
  const auto read = kernels::active_kernels().read_stream;
  std::atomic<uint32_t> sink{0};
  double best = 0.0;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    // Contiguous shares: each thread is one stream.
    parallel_for(threads, [&](int64_t t) {
      const int64_t begin = chunks * t / threads;
      const int64_t end = chunks * (t + 1) / threads;
      sink += read(data.get() + begin * chunk_bytes, (end - begin) * chunk_bytes);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, chunks * chunk_bytes / seconds.count() / 1e9);
  }
  return best;
}

} // namespace mlxrt
