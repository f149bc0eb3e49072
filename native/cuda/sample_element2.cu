// The sampling kernel for bfloat16.
#define ELEMENT 2
#include "sample.h"
