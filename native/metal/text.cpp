#include "metal/text.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

// Every file of kernels/gpu that is MSL, as it is at build time.
#define MLXRT_GPU_SOURCES(SOURCE) \
  SOURCE(add_rms_norm)            \
  SOURCE(attention)               \
  SOURCE(attention_merge)         \
  SOURCE(attention_work)          \
  SOURCE(copy_blocks)             \
  SOURCE(dialect)                 \
  SOURCE(element)                 \
  SOURCE(kv_write)                \
  SOURCE(norm_rope_write)         \
  SOURCE(params)                  \
  SOURCE(rows)                    \
  SOURCE(sample)                  \
  SOURCE(sample_parts)            \
  SOURCE(sampling)                \
  SOURCE(swiglu)

#if defined(__APPLE__)
#define MLXRT_SECTION ".section __TEXT,__const\n"
#define MLXRT_SYMBOL(name) "_mlxrt_source_" #name
#define MLXRT_END ".text\n"
#else
#define MLXRT_SECTION ".section .rodata\n"
#define MLXRT_SYMBOL(name) "mlxrt_source_" #name
#define MLXRT_END ".text\n"
#endif

#define MLXRT_EMBED(name)                                                                  \
  asm(MLXRT_SECTION ".globl " MLXRT_SYMBOL(name) "\n" MLXRT_SYMBOL(name) ":\n"              \
      ".incbin \"" MLXRT_GPU_SOURCE_FOLDER "/" #name ".h\"\n.byte 0\n" MLXRT_END);         \
  extern "C" __attribute__((visibility("hidden"))) const char mlxrt_source_##name[];
MLXRT_GPU_SOURCES(MLXRT_EMBED)

namespace mlxrt::metal {
namespace {

const std::map<std::string_view, std::string_view>& sources() {
#define MLXRT_ENTRY(name) {#name ".h", mlxrt_source_##name},
  static const auto* all =
      new std::map<std::string_view, std::string_view>{MLXRT_GPU_SOURCES(MLXRT_ENTRY)};
  return *all;
}

void append(std::string& text, std::string_view file, std::set<std::string_view>& seen) {
  constexpr std::string_view include = "#include \"";
  const auto entry = sources().find(file);
  if (entry == sources().end()) {
    throw std::out_of_range("no GPU source " + std::string(file));
  }
  if (!seen.insert(entry->first).second) {
    return;
  }
  std::string_view rest = entry->second;
  while (!rest.empty()) {
    const auto line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.starts_with(include)) {
      const auto name = line.substr(include.size());
      append(text, name.substr(0, name.find('"')), seen);
    } else if (line != "#pragma once") {
      text.append(line).append("\n");
    }
  }
}

} // namespace

std::string kernel_text(std::string_view file, std::string_view constants) {
  std::string text(constants);
  std::set<std::string_view> seen;
  append(text, file, seen);
  return text;
}

} // namespace mlxrt::metal
