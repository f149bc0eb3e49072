// MLX's CUDA headers include fmt, which its wheel does not bring; what they use of it stands in
// templates that mlxrt never instantiates.
#pragma once

#include <string>

namespace fmt {

template <class... Arguments>
std::string format(Arguments&&...) {
  return {};
}

} // namespace fmt
