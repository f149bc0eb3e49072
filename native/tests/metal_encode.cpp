// Encodes one call of each op with the recording encoder and prints what it was told. Arguments:
// "attention", "kv_write", "norm_rope_write", "sample", "copy_blocks", "hold", "cores" and the name of
// an architecture, or "strided" and "unaligned", which must be refused.

#include <cstdio>
#include <cstring>
#include <exception>

#include "metal/encode.h"
#include "mlx/backend/metal/device.h"
#include "mlx/device.h"
#include "mlx/ops.h"

namespace {

namespace mx = mlx::core;
using namespace mlxrt;

void show(const std::vector<mx::array>& arrays) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    std::printf("array %zu %p\n", i, static_cast<const void*>(arrays[i].buffer().ptr()));
  }
}

std::vector<mx::array> filled(const std::vector<mx::Shape>& shapes, mx::Dtype dtype) {
  std::vector<mx::array> arrays;
  for (const auto& shape : shapes) {
    arrays.push_back(mx::zeros(shape, dtype));
    arrays.back().eval();
  }
  return arrays;
}

std::vector<mx::array> attention_arrays() {
  auto arrays = filled({{3, 4, 64}, {40, 16, 2, 64}, {40, 16, 2, 64}}, mx::float16);
  for (auto& a : filled({{2, 16}, {3}, {2}}, mx::int32)) {
    arrays.push_back(a);
  }
  arrays.push_back(filled({{3, 4, 64}}, mx::float16)[0]);
  return arrays;
}

metal::Plan attention_plan() {
  gpu::AttentionShape shape{};
  shape.element = 1;
  shape.head_dim = 64;
  shape.num_q_heads = 4;
  shape.num_kv_heads = 2;
  shape.block_size = 16;
  shape.num_blocks = 40;
  shape.max_blocks = 16;
  shape.num_sequences = 2;
  shape.num_rows = 3;
  shape.cores = 1000;
  return metal::plan_paged_attention(shape);
}

void run(const char* what, const mx::Stream& stream) {
  if (!std::strcmp(what, "kv_write")) {
    const auto arrays = filled(
        {{2, 8, 1, 8}, {2, 8, 1, 8}, {3, 1, 8}, {3, 1, 8}, {3}, {2, 8, 1, 8}, {2, 8, 1, 8}},
        mx::float32);
    show(arrays);
    metal::encode(metal::plan_kv_write({3, 16, 32, 32}), arrays, stream, what);
  } else if (!std::strcmp(what, "norm_rope_write")) {
    auto arrays = filled({{3, 48}}, mx::float32);
    arrays.push_back(filled({{3}}, mx::int32)[0]);
    arrays.push_back(filled({{8}}, mx::float32)[0]);
    arrays.push_back(filled({{3}}, mx::int64)[0]);
    for (auto& a : filled({{2, 8, 1, 16}, {2, 8, 1, 16}, {16}, {3, 1, 16}, {2, 8, 1, 16},
                           {2, 8, 1, 16}}, mx::float32)) {
      arrays.push_back(a);
    }
    show(arrays);
    metal::encode(metal::plan_norm_rope_write({.element = 0, .pool_element = 0, .num_rows = 3,
                                               .num_q_heads = 1, .num_kv_heads = 1,
                                               .head_dim = 16, .pairs = 8, .num_slots = 16,
                                               .norms_keys = true}),
                  arrays, stream, what);
  } else if (!std::strcmp(what, "sample")) {
    auto arrays = filled({{3, 9}, {2, 5}}, mx::float32);
    arrays.push_back(filled({{3}}, mx::int32)[0]);
    arrays.push_back(filled({{3}}, mx::bool_)[0]);
    arrays.push_back(filled({{3}}, mx::float32)[0]);
    show(arrays);
    metal::encode(metal::plan_sample({0, 3, 9, 2}), arrays, stream, what);
  } else if (!std::strcmp(what, "copy_blocks")) {
    const auto arrays = filled({{4, 8}, {2}, {2}, {4, 8}}, mx::float32);
    show(arrays);
    metal::encode(metal::plan_copy_blocks({2, 4, {32}}), arrays, stream, what);
  } else if (!std::strcmp(what, "hold")) {
    const auto arrays = filled({{2, 8}, {2, 8}, {4, 8}, {4, 8}}, mx::float32);
    show(arrays);
    metal::hold({arrays[0], arrays[1]}, {arrays[2], arrays[3]}, stream);
  } else {
    auto arrays = attention_arrays();
    if (!std::strcmp(what, "strided")) {
      arrays[0] = mx::transpose(filled({{64, 4, 3}}, mx::float16)[0]);
      arrays[0].eval();
    } else if (!std::strcmp(what, "unaligned")) {
      arrays[0] = mx::slice(filled({{3 * 4 * 64 + 4}}, mx::float16)[0], {4}, {3 * 4 * 64 + 4});
      arrays[0].eval();
    }
    show(arrays);
    metal::encode(attention_plan(), arrays, stream, "paged_attention");
  }
}

} // namespace

int main(int, char** words) try {
  const auto stream = mx::default_stream(mx::Device::cpu);
  if (!std::strcmp(words[1], "cores")) {
    mx::metal::device(stream.device).architecture = words[2];
    std::printf("%d\n", metal::core_count(stream));
    return 0;
  }
  run(words[1], stream);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
