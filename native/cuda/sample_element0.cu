// The sampling op's kernel for rows of float32.
#define ELEMENT 0
#include "sample.h"
