// What a kernel is compiled for. One list of fields gives the struct, the constants in the text and
// the name of the kernel, which is also the key of a cache of pipelines: none can lack a field.
#pragma once

#include <string>

namespace mlxrt::gpu {

#define MLXRT_ATTENTION_FIELDS(FIELD) \
  FIELD(element, ELEMENT)             \
  FIELD(head_dim, HEAD_DIM)           \
  FIELD(queries, QUERIES)             \
  FIELD(simdgroups, SIMDGROUPS)       \
  FIELD(chunk, CHUNK)                 \
  FIELD(softcap, SOFTCAP)

// Fields as in attention.h.
struct AttentionKey {
#define MLXRT_DECLARE(field, constant) int field = 0;
  MLXRT_ATTENTION_FIELDS(MLXRT_DECLARE)
#undef MLXRT_DECLARE

  bool operator==(const AttentionKey&) const = default;

  // "attention_element2_head_dim128_...": the kernel, and the key of its pipeline.
  std::string name() const {
    std::string text = "attention";
#define MLXRT_NAME(field, constant) text += "_" #field + std::to_string(field);
    MLXRT_ATTENTION_FIELDS(MLXRT_NAME)
#undef MLXRT_NAME
    return text;
  }

  // The file that it is compiled into with its nearest kin.
  std::string file() const {
    return "attention_element" + std::to_string(element) + "_head_dim" + std::to_string(head_dim);
  }

  // The kernel that merges the parts, where the dialect does not do it in place.
  std::string merge_name() const {
    return "merge_" + name();
  }

  // Lines that go before the text.
  std::string constants() const {
    std::string text;
#define MLXRT_CONSTANT(field, constant) \
  text += "#define " #constant " " + std::to_string(field) + "\n";
    MLXRT_ATTENTION_FIELDS(MLXRT_CONSTANT)
#undef MLXRT_CONSTANT
    return text + "#define ENTRY " + name() + "\n#define MERGE_ENTRY " + merge_name() + "\n";
  }
};

// A kernel of the fused ops, which are compiled for an element type alone. rows.h makes the same name
// of the constant, so that a text for another type has no kernel of this name.
struct RowKey {
  const char* op = "";
  int element = 0;

  // "swiglu_element2": the kernel, and the key of its pipeline.
  std::string name() const {
    return op + std::string("_element") + std::to_string(element);
  }

  // The file that it is compiled into with its nearest kin.
  std::string file() const {
    return "fused_element" + std::to_string(element);
  }

  std::string constants() const {
    return "#define ELEMENT " + std::to_string(element) + "\n";
  }
};

} // namespace mlxrt::gpu
