// The sampling op's kernels for parts of rows of float16.
#define ELEMENT 1
#include "sample_parts.h"
