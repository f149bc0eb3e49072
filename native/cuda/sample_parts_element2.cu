// The sampling op's kernels for parts of rows of bfloat16.
#define ELEMENT 2
#include "sample_parts.h"
