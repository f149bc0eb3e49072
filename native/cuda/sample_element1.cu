// The sampling kernel for float16.
#define ELEMENT 1
#include "sample.h"
