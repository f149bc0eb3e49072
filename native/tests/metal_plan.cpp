// Prints the plan of an op, for the emulator: metal_plan OP NAME=NUMBER... writes JSON. Lists, as
// block_bytes, repeat the name. The text of each kernel stands once, under its library's name.

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "metal/plan.h"

namespace {

using namespace mlxrt;

std::multimap<std::string, double> arguments;

double number(const std::string& name, double otherwise = 0) {
  const auto found = arguments.find(name);
  return found == arguments.end() ? otherwise : found->second;
}

int integer(const std::string& name) {
  return static_cast<int>(number(name));
}

metal::Plan plan_of(const std::string& op) {
  if (op == "kv_write") {
    return metal::plan_kv_write(
        {integer("rows"), integer("slots"), integer("key_bytes"), integer("value_bytes")});
  }
  if (op == "copy_blocks") {
    metal::CopyShape shape{integer("pairs"), integer("num_blocks"), {}};
    const auto range = arguments.equal_range("block_bytes");
    for (auto i = range.first; i != range.second; ++i) {
      shape.block_bytes.push_back(static_cast<int64_t>(i->second));
    }
    return metal::plan_copy_blocks(shape);
  }
  if (op == "norm_rope_write") {
    gpu::NormRopeShape shape{};
    shape.element = integer("element");
    shape.pool_element = integer("pool_element");
    shape.num_rows = integer("num_rows");
    shape.num_q_heads = integer("num_q_heads");
    shape.num_kv_heads = integer("num_kv_heads");
    shape.head_dim = integer("head_dim");
    shape.pairs = integer("pairs");
    shape.num_slots = static_cast<int64_t>(number("num_slots"));
    shape.traditional = integer("traditional");
    shape.norms_queries = integer("norms_queries");
    shape.norms_keys = integer("norms_keys");
    shape.eps = static_cast<float>(number("eps"));
    shape.scale = static_cast<float>(number("scale", 1));
    return metal::plan_norm_rope_write(shape);
  }
  if (op == "sample") {
    return metal::plan_sample({integer("element"), integer("num_rows"), integer("vocabulary"),
                               integer("rule_rows")});
  }
  const gpu::RowShape rows{integer("element"), integer("num_rows"), integer("size"),
                           static_cast<float>(number("eps"))};
  if (op == "add_rms_norm") {
    return metal::plan_add_rms_norm(rows);
  }
  if (op == "swiglu") {
    return metal::plan_swiglu(rows);
  }
  gpu::AttentionShape shape{};
  shape.element = integer("element");
  shape.head_dim = integer("head_dim");
  shape.num_q_heads = integer("num_q_heads");
  shape.num_kv_heads = integer("num_kv_heads");
  shape.block_size = integer("block_size");
  shape.num_blocks = integer("num_blocks");
  shape.max_blocks = integer("max_blocks");
  shape.num_sequences = integer("num_sequences");
  shape.num_rows = integer("num_rows");
  shape.cores = static_cast<int>(number("cores", shape.cores));
  shape.window = integer("window");
  shape.has_sinks = integer("has_sinks");
  shape.scale = static_cast<float>(number("scale", 1));
  shape.softcap = static_cast<float>(number("softcap"));
  return metal::plan_paged_attention(shape);
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '\n') {
      result += "\\n";
    } else {
      result += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
    }
  }
  return result + "\"";
}

template <class List, class F>
std::string listed(const List& list, F item) {
  std::string result = "[";
  for (const auto& each : list) {
    result += (result.size() > 1 ? ", " : "") + item(each);
  }
  return result + "]";
}

std::string dispatch_text(const metal::Dispatch& d) {
  const auto binding = [](const metal::Binding& b) {
    return "[" + std::to_string(b.array) + ", " + std::to_string(static_cast<int>(b.use)) + "]";
  };
  const auto byte = [](uint8_t b) { return std::to_string(b); };
  const int grid[3] = {d.grid.x, d.grid.y, d.grid.z};
  return "{\"kernel\": " + quoted(d.kernel) + ", \"library\": " + quoted(d.library) +
      ", \"buffers\": " + listed(d.buffers, binding) + ", \"params\": " + listed(d.params, byte) +
      ", \"grid\": " + listed(grid, [](int n) { return std::to_string(n); }) +
      ", \"threads\": " + std::to_string(d.threads) +
      ", \"threadgroup_bytes\": " + std::to_string(d.threadgroup_bytes) + "}";
}

} // namespace

int main(int count, char** words) try {
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    const auto at = word.find('=');
    arguments.emplace(word.substr(0, at), std::strtod(word.c_str() + at + 1, nullptr));
  }
  const auto plan = plan_of(words[1]);
  std::map<std::string, std::string> texts;
  for (const auto& dispatch : plan.dispatches) {
    texts[dispatch.library] = dispatch.text();
  }
  std::cout << "{\"scratch_bytes\": "
            << listed(plan.scratch_bytes, [](int64_t n) { return std::to_string(n); })
            << ", \"dispatches\": " << listed(plan.dispatches, dispatch_text) << ", \"texts\": {";
  const char* separator = "";
  for (const auto& [library, text] : texts) {
    std::cout << separator << quoted(library) << ": " << quoted(text);
    separator = ", ";
  }
  std::cout << "}}\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
