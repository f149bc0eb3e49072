// The sampling op's kernel for rows of bfloat16.
#define ELEMENT 2
#include "sample.h"
