#pragma once

#include <string>
#include <vector>

#include "simd/attention.h"

namespace mlxrt::kernels {

// The kernels in use: the best that the machine can run unless set_simd_level said otherwise.
const KernelSet& active_kernels();

// Names of the instruction sets that this build has and this machine can run, best first.
std::vector<std::string> simd_levels();

// The name of the set in use.
std::string simd_level();

// Chooses a set by name, or the best one by "auto"; throws std::invalid_argument if it can't run.
void set_simd_level(const std::string& name);

} // namespace mlxrt::kernels
