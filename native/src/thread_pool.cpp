#include "mlxrt/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mlxrt {
namespace {

// About 20 µs of spinning: two layers of a step follow each other closer than a wake-up takes.
constexpr int spins_before_sleep = 500;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Completion is counted per index, not per worker: a worker that wakes late finds nothing to do.
struct Job {
  Job(int64_t count, LoopBody body, void* context) : count(count), body(body), context(context) {}

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      body(context, i);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  const int64_t count;
  const LoopBody body;
  void* const context;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
};

class ThreadPool {
 public:
  // Leaked: MLX's stream threads outlive static destruction.
  static ThreadPool& instance() {
    static auto* pool = new ThreadPool();
    return *pool;
  }

  int size() const {
    return size_.load(std::memory_order_relaxed);
  }

  void resize(int count) {
    std::lock_guard lock(mutex_);
    size_ = count;
    for (; started_ < count - 1; ++started_) {
      std::thread([this, id = started_] { loop(id); }).detach();
    }
  }

  void run(int64_t count, LoopBody body, void* context) {
    if (count <= 1 || size() == 1) {
      for (int64_t i = 0; i < count; ++i) {
        body(context, i);
      }
      return;
    }
    auto job = std::make_shared<Job>(count, body, context);
    {
      std::lock_guard lock(mutex_);
      current_ = job;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job->work();
    for (int spins = 0; job->done.load(std::memory_order_acquire) < count; ++spins) {
      // A worker that lost its core must get this one back.
      spins < spins_before_sleep ? relax() : std::this_thread::yield();
    }
  }

 private:
  ThreadPool() {
    resize(std::max(1u, std::thread::hardware_concurrency()));
  }

  void loop(int id) {
    uint64_t seen = 0;
    for (;;) {
      for (int s = 0; s < spins_before_sleep && generation_.load(std::memory_order_acquire) == seen;
           ++s) {
        relax();
      }
      std::shared_ptr<Job> job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (id < size_ - 1) {
          job = current_;
        }
      }
      if (job) {
        job->work();
      }
    }
  }

  std::atomic<int> size_{1};
  int started_ = 0;
  std::shared_ptr<Job> current_;
  std::atomic<uint64_t> generation_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

} // namespace

int num_threads() {
  return ThreadPool::instance().size();
}

void set_num_threads(int count) {
  if (count < 1) {
    throw std::invalid_argument("[set_num_threads] count must be at least 1");
  }
  ThreadPool::instance().resize(count);
}

void parallel_for(int64_t count, LoopBody body, void* context) {
  ThreadPool::instance().run(count, body, context);
}

} // namespace mlxrt
