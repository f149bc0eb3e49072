// The thread pool under several callers at once, each with attention of its own over one shared
// pool of keys and values, without MLX or Python. For the thread sanitizer: native/README.md.

#include <atomic>
#include <bit>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "simd/attention.h"
#include "mlxrt/thread_pool.h"

using namespace mlxrt;
using namespace mlxrt::kernels;

namespace {

constexpr int callers = 3, rounds = 40, tasks = 12;
constexpr int kv_heads = 2, heads = 4, dim = 32, block_size = 4, context = 70;

#ifdef PLANT_DATA_RACE // what the thread sanitizer must find
int64_t raced = 0;
std::atomic<unsigned> met{0};

// Until two threads are here at once, which no lock puts in order: on one core, tasks may otherwise
// come one after the other, each behind a lock that the last one held.
void meet(int caller) {
  met.fetch_or(1u << caller, std::memory_order_relaxed);
  while (std::popcount(met.load(std::memory_order_relaxed)) < 2) {
    std::this_thread::yield();
  }
}
#endif

struct Result {
  std::vector<float> maxima = std::vector<float>(heads);
  std::vector<float> sums = std::vector<float>(heads);
  std::vector<float> outputs = std::vector<float>(heads * dim);
};

// Attention of one row over the positions up to its own.
void attend(const std::vector<float>& pool, const std::vector<int32_t>& table,
            const std::vector<float>& query, int position, Result& result) {
  AttentionPart part{};
  part.queries = query.data();
  part.keys = part.values = reinterpret_cast<const char*>(pool.data());
  part.table = table.data();
  part.maxima = result.maxima.data();
  part.sums = result.sums.data();
  part.outputs = result.outputs.data();
  part.first_position = position;
  part.end = position + 1;
  part.pool_type = ElementType::float32;
  part.rows = 1;
  part.num_q_heads = heads;
  part.num_kv_heads = part.kv_head_end = kv_heads;
  part.key_dim = part.value_dim = part.key_stride = part.value_stride = dim;
  part.block_size = block_size;
  generic_kernels().attend(part);
}

} // namespace

int main() {
  set_num_threads(3);
  std::vector<float> pool((context + block_size) * kv_heads * dim), query(heads * dim);
  for (size_t i = 0; i < pool.size(); ++i) {
    pool[i] = static_cast<float>(i * 37 % 101) / 101 - 0.5f;
  }
  for (size_t i = 0; i < query.size(); ++i) {
    query[i] = static_cast<float>(i * 13 % 29) / 29 - 0.5f;
  }
  std::vector<int32_t> table;
  for (int b = 0; b * block_size < context; ++b) {
    table.push_back(b);
  }
  std::vector<Result> expected(tasks);
  for (int i = 0; i < tasks; ++i) {
    attend(pool, table, query, context - tasks + i, expected[i]);
  }
  std::atomic<int> wrong{0};
  std::atomic<int> ran{0};
  std::vector<std::thread> threads;
  for (int c = 0; c < callers; ++c) {
    threads.emplace_back([&, c] {
      for (int round = 0; round < rounds; ++round) {
        if (c == 0) {
          set_num_threads(2 + round % 2); // while the others are inside parallel_for
        }
        std::vector<Result> found(tasks);
        parallel_for(tasks, [&](int64_t i) {
          attend(pool, table, query, context - tasks + static_cast<int>(i), found[i]);
          ran.fetch_add(1, std::memory_order_relaxed);
#ifdef PLANT_DATA_RACE
          meet(c);
          ++raced;
#endif
        });
        for (int i = 0; i < tasks; ++i) {
          wrong += found[i].sums != expected[i].sums || found[i].outputs != expected[i].outputs;
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  std::printf("%d tasks, %d wrong\n", ran.load(), wrong.load());
  return wrong != 0 || ran != callers * rounds * tasks;
}
