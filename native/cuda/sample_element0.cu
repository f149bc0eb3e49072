// The sampling kernel for float32.
#define ELEMENT 0
#include "sample.h"
