// The names of CoreFoundation that metal-cpp mentions: enough to compile and link its users without
// Apple's SDK. See tests/contract/test_macos_link.py.
#pragma once

#include <cstdint>

using CFTypeRef = const void*;
using CFIndex = long;
using CFTimeInterval = double;

struct CGSize {
  double width, height;
};
