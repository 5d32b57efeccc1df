// How depthwise kernels walk over their tiles and end: bias, residual, activation, a row of outputs at a time.
#pragma once
#include "conv.cuh"
#include "epilogue.cuh"
#include "tile.cuh"

constexpr int THREADS = 128;

#define EACH_ITEM(flat) \
    for (Index flat = (Index)blockIdx.x * THREADS + threadIdx.x; flat < (Index)t.items; flat += (Index)gridDim.x * THREADS)

// Write a row of a thread's outputs.
template <int COLUMNS>
DEVICE void finish_row(const Conv &g, const Place &p, int h, int w, const Sum (&sums)[COLUMNS], Sum bias,
                       const Element *residual, const long long by[5], const long long residual_by[5], int width,
                       Element *out, bool whole) {
    Element v[COLUMNS];
    const Element *other = residual + (Index)residual_by[0] * p.n + (Index)residual_by[1] * p.c + (Index)residual_by[3] * h;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        Sum sum = sums[j] + bias;
        if (residual && w + j < width) sum += widen(other[(Index)residual_by[4] * (w + j)]);
        v[j] = narrow<Element>(activated(sum, g.activation));
    }
    store_row<COLUMNS>(out + (Index)by[0] * p.n + (Index)by[1] * p.c + (Index)by[3] * h, (Index)by[4], w, width, whole, v);
}
