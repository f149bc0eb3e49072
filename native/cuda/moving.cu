// Kernels that move and do not compute.
#include "copy_blocks.h"
#include "kv_write.h"
