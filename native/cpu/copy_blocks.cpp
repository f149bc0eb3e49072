#include "mlxrt/copy_blocks.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_set>

#include "cpu/int_vector.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"

namespace mlxrt {
namespace {

struct Pair {
  int32_t source;
  int32_t destination;
};

struct Pool {
  char* data;
  int64_t block_bytes;
};

std::vector<Pair> read_pairs(const cpu::IntVector<int32_t>& sources,
                             const cpu::IntVector<int32_t>& destinations, int64_t num_blocks) {
  std::vector<Pair> pairs;
  std::unordered_set<int32_t> written;
  for (int64_t i = 0; i < sources.size; ++i) {
    const Pair pair{sources[i], destinations[i]};
    if (pair.source < 0 || pair.destination < 0) {
      continue;
    }
    if (pair.source >= num_blocks || pair.destination >= num_blocks) {
      throw std::out_of_range(
          "[copy_blocks] pair " + std::to_string(i) + " is " + std::to_string(pair.source) +
          " -> " + std::to_string(pair.destination) + ", the pools have " +
          std::to_string(num_blocks) + " blocks; nothing was copied");
    }
    if (!written.insert(pair.destination).second) {
      throw std::invalid_argument(
          "[copy_blocks] destinations[" + std::to_string(i) + "] is " +
          std::to_string(pair.destination) + " for the second time; nothing was copied");
    }
    pairs.push_back(pair);
  }
  return pairs;
}

// Only blocks that are both read and written need to be set aside.
void copy_in_pool(const Pool& pool, const std::vector<Pair>& pairs,
                  const std::vector<bool>& is_set_aside, std::vector<char>& scratch) {
  char* aside = scratch.data();
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (is_set_aside[i]) {
      std::memcpy(aside, pool.data + pairs[i].source * pool.block_bytes, pool.block_bytes);
      aside += pool.block_bytes;
    }
  }
  aside = scratch.data();
  for (size_t i = 0; i < pairs.size(); ++i) {
    char* to = pool.data + pairs[i].destination * pool.block_bytes;
    if (is_set_aside[i]) {
      std::memcpy(to, aside, pool.block_bytes);
      aside += pool.block_bytes;
    } else if (pairs[i].source != pairs[i].destination) {
      std::memcpy(to, pool.data + pairs[i].source * pool.block_bytes, pool.block_bytes);
    }
  }
}

void copy_pairs(const std::vector<Pool>& pools, const std::vector<Pair>& pairs) {
  std::unordered_set<int32_t> written;
  for (const auto& pair : pairs) {
    written.insert(pair.destination);
  }
  std::vector<bool> is_set_aside;
  int64_t aside_count = 0;
  for (const auto& pair : pairs) {
    is_set_aside.push_back(pair.source != pair.destination && written.count(pair.source) > 0);
    aside_count += is_set_aside.back();
  }
  int64_t largest = 0;
  for (const auto& pool : pools) {
    largest = std::max(largest, pool.block_bytes);
  }
  std::vector<char> scratch(aside_count * largest);
  for (const auto& pool : pools) {
    copy_in_pool(pool, pairs, is_set_aside, scratch);
  }
}

} // namespace

void CopyBlocks::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  std::vector<Pool> pools;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!inputs[i].flags().row_contiguous) {
      throw std::runtime_error(
          "[copy_blocks] pools[" + std::to_string(i) + "] must be row-contiguous");
    }
    outputs[i].copy_shared_buffer(inputs[i]);
    const int64_t bytes = outputs[i].nbytes();
    pools.push_back({outputs[i].data<char>(), bytes / std::max(1, outputs[i].shape(0))});
  }
  count_evaluation(Op::copy_blocks);
  auto& encoder = mx::cpu::get_command_encoder(stream());
  encoder.dispatch([pools = std::move(pools),
                    sources = cpu::IntVector<int32_t>(inputs[outputs.size()]),
                    destinations = cpu::IntVector<int32_t>(inputs[outputs.size() + 1]),
                    num_blocks = int64_t{outputs[0].shape(0)}] {
    copy_pairs(pools, read_pairs(sources, destinations, num_blocks));
  });
}

} // namespace mlxrt
