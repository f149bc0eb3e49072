// Compares one kernel set's rows of the fused ops with plain double precision; see kernel_check.cpp.
#pragma once

#include "simd/attention.h"

// Prints the first case that differs and returns false, or returns true. Every array ends where its
// memory ends, so that a sanitizer sees what is touched beyond.
bool check_fused_rows(const mlxrt::kernels::KernelSet& set);
