#include "mlxrt/counters.h"

namespace mlxrt {
namespace {
std::array<std::atomic<uint64_t>, op_names.size()> counts{};
}

void count_evaluation(Op op) {
  counts[static_cast<int>(op)].fetch_add(1, std::memory_order_relaxed);
}

std::array<uint64_t, op_names.size()> evaluation_counts() {
  std::array<uint64_t, op_names.size()> values;
  for (size_t i = 0; i < counts.size(); ++i) {
    values[i] = counts[i].load(std::memory_order_relaxed);
  }
  return values;
}

void reset_evaluation_counts() {
  for (auto& count : counts) {
    count.store(0, std::memory_order_relaxed);
  }
}

} // namespace mlxrt
