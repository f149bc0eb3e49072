// Writes the CUDA text of all kernels of one element type and head size: generate ELEMENT HEAD_DIM.
// The list of kernels is plan_attention's own, so none that it may name is missing.

#include <cstdlib>
#include <iostream>

#include "kernels/gpu/launch.h"

int main(int, char** arguments) {
  const int element = std::atoi(arguments[1]);
  const int head_dim = std::atoi(arguments[2]);
  std::cout << "#define ELEMENT " << element << "\n#define HEAD_DIM " << head_dim
            << "\n#include \"attention_merge.h\"\n#include \"element.h\"\n";
  for (const auto& key : mlxrt::gpu::keys_of(element, head_dim)) {
    std::cout << "\n#undef ELEMENT\n#undef HEAD_DIM\n#undef QUERIES\n#undef SIMDGROUPS\n"
              << "#undef CHUNK\n#undef SOFTCAP\n#undef ENTRY\n#undef MERGE_ENTRY\n"
              << key.constants() << "namespace in_" << key.name()
              << " {\n#include \"attention.h\"\n}\n";
  }
}
