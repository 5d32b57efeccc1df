// How the compiler lays out the structs that kernels/cuda/tiles.py and pool.py declare again: each field's offset and
// size, after the struct's size.
#include "pool.cuh"

#define FIELD(name) out[i++] = (int)((const char *)&s.name - (const char *)&s), out[i++] = (int)sizeof s.name;

KERNEL(1, 1) tiles_layout(const Tiles s, int *out) {
    int i = 0;
    out[i++] = sizeof s;
    FIELD(items) FIELD(columns) FIELD(rows) FIELD(depth) FIELD(channels) FIELD(channels_last)
}

KERNEL(1, 1) pool_layout(const Pool s, int *out) {
    int i = 0;
    out[i++] = sizeof s;
    FIELD(batch) FIELD(channels) FIELD(adaptive) FIELD(input) FIELD(output) FIELD(kernel) FIELD(stride) FIELD(dilation)
    FIELD(padding) FIELD(padding_after) FIELD(by) FIELD(include_padding) FIELD(sign) FIELD(index_bytes) FIELD(divisor)
    FIELD(norm) FIELD(x) FIELD(dx) FIELD(y) FIELD(dy) FIELD(indices)
}

// Numbers divided by multiplication.
KERNEL(128, 1) quotients(const int *n, const Divisor by, int *out, const int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = quotient(n[i], by);
}
