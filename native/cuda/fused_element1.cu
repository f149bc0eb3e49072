// The fused ops' kernels for float16.
#define ELEMENT 1
#include "add_rms_norm.h"
#include "norm_rope_write.h"
#include "swiglu.h"
