#pragma once

namespace mlxrt {

// Reads a buffer of `gigabytes` GB (10^9 bytes), `repeats` times, with `threads` threads of the
// pool at once, and returns the best rate in GB/s. The buffer must be larger than the caches, or it
// is their rate that is measured. Throws std::invalid_argument for values that are not positive.
double read_bandwidth(double gigabytes, int repeats, int threads);

} // namespace mlxrt
