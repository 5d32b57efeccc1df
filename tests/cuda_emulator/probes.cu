// Kernels that show what the shared headers and the emulator's own functions do, one result an element.
#include "conv.cuh"
#include "epilogue.cuh"
#include "ptx.cuh"

KERNEL(1, 1) conv_layout(const Conv g, int *out) {
    int i = 0;
    out[i++] = sizeof(Conv);
#define FIELD(name) out[i++] = (int)((const char *)&g.name - (const char *)&g), out[i++] = (int)sizeof g.name;
    FIELD(batch) FIELD(groups) FIELD(inputs) FIELD(outputs) FIELD(mode) FIELD(activation) FIELD(input) FIELD(output)
    FIELD(kernel) FIELD(stride) FIELD(dilation) FIELD(padding) FIELD(padding_after) FIELD(x) FIELD(w) FIELD(y)
    FIELD(residual)
}

// What position i - before of a padded axis shows.
KERNEL(128, 1) padding_sources(int *out, const int count, const int before, const int n, const int mode) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i < count) out[i] = source(i - before, n, mode);
}

// A 16-bit element to float and back.
KERNEL(128, 1) convert(const Element *from, Sum *wide, const Sum *values, Element *narrowed, const int count) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= count) return;
    wide[i] = widen(from[i]);
    narrowed[i] = narrow<Element>(values[i]);
}

KERNEL(128, 1) activations(const Sum *from, Sum *to, const int count, const int kind) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i < count) to[i] = activate(from[i], kind);
}

// Every collective, by 48 threads of which the last 8 have ended: the second warp is half full.
KERNEL(64, 1) collectives(int *out) {
    const int i = threadIdx.x;
    if (i >= 40) return;
    const unsigned all = i < 32 ? ~0u : 0xffu;
    int *mine = out + i * 10;
    mine[0] = __shfl_sync(all, i * 3, 2);
    mine[1] = __shfl_xor_sync(all, i * 3, 4);
    mine[2] = __shfl_down_sync(all, i, 3, 8);
    mine[3] = __shfl_up_sync(all, i, 3, 8);
    mine[4] = (int)__ballot_sync(all, i % 3 == 0);
    mine[5] = (int)__shfl_sync(all, 1.5 * i, 7);
    mine[6] = __any_sync(all, i == 35);
    mine[7] = __all_sync(all, i < 32);
    const unsigned half = i % 32 < 4 ? 0xfu : all & ~0xfu;  // lanes of a warp part, and meet among themselves
    mine[8] = i % 32 < 4 ? __shfl_sync(half, i, 1) : (int)__ballot_sync(half, i % 2);
    __syncwarp(all);
    mine[9] = __shfl_sync(all, i, 5, 16);
}

// Asynchronous copies of every size, aligned, with and without zeros; then as seen by another thread.
KERNEL(32, 1) copies(const float *from, float *to) {
    SHARED_MEMORY(memory);
    float *stage = (float *)memory;
    const int i = threadIdx.x;
    if (i < 8) copy_async<16>(stage + 4 * i, from + 4 * i, i % 2 == 0);
    if (i < 16) copy_async<8>(stage + 32 + 2 * i, from + 32 + 2 * i, i % 2 == 0);
    copy_async<4>(stage + 64 + i, from + 64 + i, i % 2 == 0);
    commit();
    wait<0>();
    __syncthreads();
    for (int j = 31 - i; j < 96; j += 32) to[j] = stage[j];
}
