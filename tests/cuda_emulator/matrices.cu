// A product of matrices by the tensor cores' instructions: a kernel that shows what the wrappers of ptx.cuh do.
#include "ptx.cuh"

// c[16][8] = a[16][16] * b[16][8], both in rows in memory, by one warp.
KERNEL(32, 1) matrices(const Element *a, const Element *b, float *c) {
    SHARED_MEMORY(memory);
    Element *left = (Element *)memory, *right = left + 256;
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) left[i] = a[i];
    for (int i = lane; i < 128; i += 32) right[i] = b[i];
    __syncthreads();
    unsigned x[4], y[4];
    load_matrices(x, left + lane % 16 * 16 + lane / 16 * 8);  // rows 0-7, rows 8-15, then the right half
    load_matrices_transposed(y, right + lane % 16 * 8);       // the upper half, the lower half, both again
    float sum[4] = {};
    multiply_matrices<Element>(sum, x, y);
    for (int e = 0; e < 4; e++) c[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sum[e];
}
