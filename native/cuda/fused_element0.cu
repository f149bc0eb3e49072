// The fused ops' kernels for float32.
#define ELEMENT 0
#include "add_rms_norm.h"
#include "norm_rope_write.h"
#include "swiglu.h"
