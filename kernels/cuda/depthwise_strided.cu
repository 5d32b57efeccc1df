// The input gradient of a depthwise convolution with a square kernel and stride 2: 3x3, 5x5, 7x7. float32.
//
//   dx[n, c, i] = sum over k, r, s   w[k, 0, r, s] * dy[n, k, p]       every p whose tap (r, s) reads i
//
// One input channel a group, m outputs k = c * m ... c * m + m - 1; no dilation, zero padding, no depth. KERNEL_SIZE is
// a #define.
//
// A thread 4 rows of one column of dx, gathered. Of the taps that could read an element every second one does:
//
//      rows      tiles begin where row + padding is even, so that row i of a tile is read by taps r of i's parity:
//                known when compiling
//      columns   the column's parity decides, so a thread loads only the weights of its taps s: K * K / 2 registers
//
// A warp lies along a row of dx, or is 32 channels of a pixel: whole lines are written, pairs of neighbours read the
// same dy. Each dy is loaded once for all rows of the tile.
//
// Memory: dy and dx once; about 20 instructions an element for 3x3, where memory leaves time for 32. 7x7 is bound by
// instructions.
#include "depthwise.cuh"

constexpr int K = KERNEL_SIZE;

// Row h + i of dx, h + padding even, is read by taps r of i's parity, of row (h + padding) / 2 + (i - r) / 2 of dy.
KERNEL(THREADS, K == 3 ? 8 : K == 5 ? 4 : 3) depthwise_strided_grad_input(const Conv g, const Tiles t, const Element *__restrict__ dy,
                                        const Element *__restrict__ w, const Element *__restrict__ bias,
                                        const Element *__restrict__ residual, Element *__restrict__ dx) {
    constexpr int GRADIENT_ROWS = 4, ACROSS = (K + 1) / 2, ABOVE = (K - 1) / 2, COUNT = ABOVE + (GRADIENT_ROWS + 1) / 2;
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const int h = p.h * GRADIENT_ROWS - (g.padding[1] & 1), top = (h + g.padding[1]) / 2 - ABOVE;
        const int odd = (p.w + g.padding[2]) & 1, last = (p.w + g.padding[2]) >> 1;
        Sum sums[GRADIENT_ROWS][1] = {};
        for (int m = 0; m < g.outputs; m++) {
            const int k = p.c * g.outputs + m;
            const Element *weights = w + (Index)g.w[0] * k, *plane = dy + (Index)g.y[0] * p.n + (Index)g.y[1] * k;
            Sum tap[K][ACROSS];
#pragma unroll
            for (int r = 0; r < K; r++)
#pragma unroll
                for (int j = 0; j < ACROSS; j++)
                    tap[r][j] = odd + 2 * j < K ? widen(weights[(Index)g.w[3] * r + (Index)g.w[4] * (odd + 2 * j)]) : Sum(0);
#pragma unroll
            for (int a = 0; a < COUNT; a++) {
                const bool row = (unsigned)(top + a) < (unsigned)g.output[1];
                const Element *from = plane + (Index)g.y[3] * (top + a);
#pragma unroll
                for (int j = 0; j < ACROSS; j++) {
                    const bool inside = row && (unsigned)(last - j) < (unsigned)g.output[2] && odd + 2 * j < K;
                    const Sum v = inside ? widen(from[(Index)g.y[4] * (last - j)]) : Sum(0);
#pragma unroll
                    for (int i = 0; i < GRADIENT_ROWS; i++) {
                        const int r = i - 2 * (a - ABOVE);
                        if (r >= 0 && r < K) sums[i][0] = multiply_add(v, tap[r][j], sums[i][0]);
                    }
                }
            }
        }
        const Sum added = bias ? widen(bias[p.c]) : Sum(0);
#pragma unroll
        for (int i = 0; i < GRADIENT_ROWS; i++)
            if (h + i >= 0 && h + i < g.input[1])
                finish_row<1>(g, p, h + i, p.w, sums[i], added, residual, g.x, g.residual, g.input[2], dx, false);
    }
}
