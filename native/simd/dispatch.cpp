#include "simd/dispatch.h"

#include <atomic>
#include <stdexcept>

namespace mlxrt::kernels {
namespace {

std::vector<const KernelSet*> runnable() {
  std::vector<const KernelSet*> sets;
#if defined(MLXRT_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    sets.push_back(&avx512_kernels());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    sets.push_back(&avx2_kernels());
  }
#elif defined(MLXRT_NEON)
  sets.push_back(&neon_kernels());
#endif
  sets.push_back(&generic_kernels());
  return sets;
}

std::atomic<const KernelSet*>& chosen() {
  static std::atomic<const KernelSet*> set{runnable().front()};
  return set;
}

} // namespace

const KernelSet& active_kernels() {
  return *chosen().load(std::memory_order_relaxed);
}

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const auto* set : runnable()) {
    names.emplace_back(set->name);
  }
  return names;
}

std::string simd_level() {
  return active_kernels().name;
}

void set_simd_level(const std::string& name) {
  const auto sets = runnable();
  std::string known;
  for (const auto* set : sets) {
    if (name == set->name || name == "auto") {
      chosen().store(set);
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + set->name;
  }
  throw std::invalid_argument(
      "[set_simd_level] level '" + name + "' can't run on this machine; it has: " + known);
}

} // namespace mlxrt::kernels
