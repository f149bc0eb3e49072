// The sampling op's kernels for parts of rows of float32.
#define ELEMENT 0
#include "sample_parts.h"
