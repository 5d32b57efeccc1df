// A kernel with every habit that can go wrong, and #defines that each plant one mistake: what the emulator must catch.
//
//   y[b, 0, i] = x[b, t, n - 1 - i] summed over tiles t      i < n = blockDim.x, tiles copied two stages ahead
//   y[b, 1, i] = the sum of y[b, 0, j] over the warp of i
#include "ptx.cuh"

#ifndef STAGES_AWAITED
#define STAGES_AWAITED 1
#endif

KERNEL(128, 1) planted(const float *__restrict__ x, float *__restrict__ y, const int tiles) {
    SHARED_MEMORY(memory);
    float *stage = (float *)memory;  // [2][n]
    const int n = blockDim.x, i = threadIdx.x;
    const float *from = x + (long long)blockIdx.x * tiles * n;
    float sum = 0;

    copy_async<4>(stage + i, from + i, true);
    commit();
    for (int t = 0; t < tiles; t++) {
#ifdef STRAY_READ
        const bool more = true;  // also after the last tile
#else
        const bool more = t + 1 < tiles;
#endif
        if (more) copy_async<4>(stage + (t + 1) % 2 * n + i, from + (t + 1) * n + i, true);
        commit();
        wait<STAGES_AWAITED>();
#ifndef NO_BARRIER
        __syncthreads();
#endif
        sum += stage[t % 2 * n + n - 1 - i];
#ifndef NO_SECOND_BARRIER
        __syncthreads();
#endif
    }
#ifdef SHARED_OVERRUN
    stage[2 * n + i] = sum;
#endif
#ifdef STRAY_WRITE
    y[(long long)gridDim.x * 2 * n + i] = sum;
#endif
#ifdef DIVERGED
    if (i % 32 == 5) __syncthreads();
#endif
#ifdef ENDLESS
    if (i >= 32) __syncwarp(i < 64 ? 1u << (i - 32) : ~0u);
    if (i == 0) __syncwarp(3u);
    if (i == 1) __syncthreads();
#endif
    float warp = sum;
    for (int step = 16; step; step /= 2)
#ifdef MIXED
        warp += i % 2 ? __shfl_xor_sync(~0u, warp, step) : (float)__ballot_sync(~0u, 1);
#else
        warp += __shfl_xor_sync(~0u, warp, step);
#endif
#ifdef MISALIGNED  // four floats at a multiple of one
    sum += ((const float4 *)(from + 1))->x;
#endif
#ifdef MISALIGNED_COPY
    copy_async<16>(stage, from + 1, i == 0);
#endif
#ifdef OVERFLOW
    sum += (float)(i * 100'000'000);
#endif
#ifdef OUT_OF_BOUNDS
    float mine[4] = {sum, sum, sum, sum};
    sum = mine[tiles + i % 4];
#endif
#ifdef DIVISION
    sum += (float)(i / (tiles - 5));
#endif
#ifdef UNWRITTEN
    if (i == n - 1) return;
#endif
    y[(long long)blockIdx.x * 2 * n + i] = sum;
    y[((long long)blockIdx.x * 2 + 1) * n + i] = warp;
}
