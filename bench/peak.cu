// What the device can do at most, and a wait: the yardsticks of bench/gpu.py.
#include "types.cuh"

// 16 independent chains of multiply-adds a thread, nothing else: 2 * 16 * rounds operations.
KERNEL(256, 4) multiply_adds(float *out, const int rounds) {
    float a[16];
    const float x = 0.999f + blockIdx.x * 1e-9f, y = 1e-3f;
#pragma unroll
    for (int i = 0; i < 16; i++) a[i] = threadIdx.x * 1e-3f + i;
#pragma unroll 8
    for (int k = 0; k < rounds; k++) {
#pragma unroll
        for (int i = 0; i < 16; i++) a[i] = fmaf(a[i], x, y);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) sum += a[i];
    if (sum == 12345.f) *out = sum;  // never: it only keeps the loop
}

// A copy of n vectors of four.
KERNEL(256, 8) copy(const float4 *from, float4 *to, const long long n) {
    for (long long i = blockIdx.x * 256LL + threadIdx.x; i < n; i += gridDim.x * 256LL) to[i] = from[i];
}

// One thread that keeps the stream busy for so many cycles, while the host queues what is to be timed behind it.
KERNEL(1, 1) spin(const long long cycles) {
#ifndef FASTCONV_EMULATOR
    const long long start = clock64();
    while (clock64() - start < cycles) {}
#endif
}
