// The fused ops' kernels for bfloat16.
#define ELEMENT 2
#include "add_rms_norm.h"
#include "norm_rope_write.h"
#include "swiglu.h"
