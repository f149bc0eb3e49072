// The sampling op's kernel for rows of float16.
#define ELEMENT 1
#include "sample.h"
