// The text of the GPU kernels as it is handed to Metal's compiler. Plain C++.
#pragma once

#include <string>
#include <string_view>

namespace mlxrt::metal {

// The text of a file of kernels/gpu, what it includes from there in its place, after `constants`:
// lines of #define that say what it is compiled for. Throws std::out_of_range for an unknown file.
std::string kernel_text(std::string_view file, std::string_view constants);

} // namespace mlxrt::metal
