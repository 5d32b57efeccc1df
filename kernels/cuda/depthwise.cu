// Depthwise convolution with a square kernel and a stride known when compiling: 3x3, 5x5, 7x7; stride 1 or 2. float32.
//
//   forward      y[n, k, p]  = sum over r, s      w[k, 0, r, s] * x[n, k / m, p * S + (r, s) - padding]
//   grad_weight  dw[k, 0, r, s] = sum over n, p   dy[n, k, p] * x[n, k / m, p * S + (r, s) - padding]
//
// A group has one input channel and m outputs k = c * m ... c * m + m - 1; no dilation, zero padding, no depth. KERNEL_SIZE
// and STRIDE are #defines. The input gradient at stride 1 is the first kernel on dy with w reversed (the launcher turns
// strides around); it sums g.inputs channels, which forward has one of. At stride 2 it is depthwise_strided.cu's.
//
// Forward, a thread ROWS x COLUMNS outputs of a channel: K * K weights and the sums stay in registers, the input rows
// stream through them, each loaded once and multiplied into every output row that a tap of it belongs to:
//
//      x row r    [. . . . . .]                     3x3, stride 1, 4 x 4 outputs:
//                  \ | / taps s                     6 rows of 6 for 16 outputs, 2.25 loads and 9 multiply-adds an output
//      y rows     r, r-1, r-2   (taps 0, 1, 2)
//
//   _fours    COLUMNS 4, channels first, rows of x on 16 bytes, padding K / 2: vectors of four along the rows
//   _across   COLUMNS 4, channels last: a warp is 32 channels of the same pixels, its loads and stores are whole lines
//   (none)    COLUMNS 1, any strides: a warp lies along a row
//
// grad_weight, a block one channel (first) or 32 (last) and a share of the images: a thread keeps K * K sums while it
// walks over tiles of dy as forward does, the block adds them up in shared memory in a fixed order. Shares are added by
// a second kernel, in order: no atomics, the same bits on every run.
//
// Memory: x, dy and y once. By count 3x3 and 5x5 are bound by memory; 7x7 is not: 49 multiply-adds an output, where
// memory leaves time for about 52 instructions in all. It loses where planes are so small that a launch is all there
// is. No speed here has been measured on a GPU.
#include "depthwise.cuh"

constexpr int K = KERNEL_SIZE, S = STRIDE, TAPS = K * K;
constexpr int BLOCKS = K == 3 ? 5 : K == 5 ? 3 : 2;  // of a multiprocessor, at least: few warps, each with many loads on the way
constexpr int WEIGHT_BLOCKS = BLOCKS - 1;  // a sum for every tap: with as many as forward, 3x3 at stride 2 spills on sm_80
constexpr int ACROSS_BLOCKS = K > 3 ? 2 : S == 1 ? 4 : 3;  // a load's address is a register of its own there
constexpr int ROWS = S == 1 ? 4 : 2, TALL_ROWS = S == 2 || K == 3 ? 4 : 8;

// The rows of x that a tile needs, one after the other: use(r, values of SPAN columns).
template <int TILE_ROWS, int COLUMNS, bool ALIGNED, class Use>
DEVICE void each_row(const Conv &g, const Element *plane, int h, int w, Use use) {
    constexpr int SPAN = (COLUMNS - 1) * S + K;
    const int first_row = h * S - g.padding[1], first = w * S - g.padding[2];
#pragma unroll
    for (int r = 0; r < (TILE_ROWS - 1) * S + K; r++) {
        const int row = first_row + r;
        const bool inside = (unsigned)row < (unsigned)g.input[1];
        const Element *from = plane + (Index)g.x[3] * row;
        Sum v[SPAN];
        if constexpr (ALIGNED)
            load_row_aligned<SPAN, K / 2>(from, first, g.input[2], inside, Sum(0), v);
        else
            load_row<SPAN>(from, (Index)g.x[4], first, g.input[2], inside, Sum(0), v);
        use(r, v);
    }
}

template <int TILE_ROWS, int COLUMNS, bool ALIGNED>
DEVICE void correlate(const Conv &g, const Tiles &t, const Element *x, const Element *w, const Element *bias,
                      const Element *residual, Element *y, bool whole) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const int h = p.h * TILE_ROWS, column = p.w * COLUMNS;
        const int group = g.outputs == 1 ? p.c : p.c / g.outputs;
        Sum sums[TILE_ROWS][COLUMNS] = {};
        for (int c = 0; c < g.inputs; c++) {
            const Element *weights = w + (Index)g.w[0] * p.c + (Index)g.w[1] * c;
            Sum tap[TAPS];
#pragma unroll
            for (int i = 0; i < TAPS; i++) tap[i] = widen(weights[(Index)g.w[3] * (i / K) + (Index)g.w[4] * (i % K)]);
            const Element *plane = x + (Index)g.x[0] * p.n + (Index)g.x[1] * (group * g.inputs + c);
            each_row<TILE_ROWS, COLUMNS, ALIGNED>(g, plane, h, column, [&](int r, const auto &v) {
#pragma unroll
                for (int i = 0; i < TILE_ROWS; i++) {
                    const int from = r - i * S;
                    if (from < 0 || from >= K) continue;
#pragma unroll
                    for (int s = 0; s < K; s++)
#pragma unroll
                        for (int j = 0; j < COLUMNS; j++)
                            sums[i][j] = multiply_add(v[j * S + s], tap[from * K + s], sums[i][j]);
                }
            });
        }
        const Sum added = bias ? widen(bias[p.c]) : Sum(0);
#pragma unroll
        for (int i = 0; i < TILE_ROWS; i++)
            if (h + i < g.output[1])
                finish_row<COLUMNS>(g, p, h + i, column, sums[i], added, residual, g.y, g.residual, g.output[2], y, whole);
    }
}

#define CORRELATION                                                                                                   \
    const Conv g, const Tiles t, const Element *__restrict__ x, const Element *__restrict__ w,                        \
        const Element *__restrict__ bias, const Element *__restrict__ residual, Element *__restrict__ y, const int whole

KERNEL(THREADS, BLOCKS) depthwise(CORRELATION) {
    correlate<TALL_ROWS, 1, false>(g, t, x, w, bias, residual, y, whole);
}
KERNEL(THREADS, BLOCKS) depthwise_fours(CORRELATION) {
    correlate<ROWS, 4, true>(g, t, x, w, bias, residual, y, whole);
}
KERNEL(THREADS, ACROSS_BLOCKS) depthwise_across(CORRELATION) {
    correlate<ROWS, 4, false>(g, t, x, w, bias, residual, y, false);
}

// -------------------------------------------------------------------------------------------------------- grad_weight

constexpr int ROUND = THREADS / 32;  // taps added up at a time, a warp each

// Every thread's sum of each tap, added over the threads of its channel. Thread i has channel i % per; `per` is 1 or 32.
DEVICE void add_up(const Sum (&sums)[TAPS], Sum *shared, int per, int first, int channels, Sum *to, long long stride,
                   long long tap_stride) {
    const int i = threadIdx.x;
#pragma unroll
    for (int round = 0; round < TAPS; round += ROUND) {
        __syncthreads();  // what was read before is no longer needed
#pragma unroll
        for (int j = 0; j < ROUND; j++)
            if (round + j < TAPS) shared[j * THREADS + i] = sums[round + j];
        __syncthreads();
        // ROUND numbers a thread; with one channel a block the 32 threads of the tap then add theirs.
        const int tap = i / 32, lane = i % 32;
        Sum sum = 0;
#pragma unroll
        for (int j = 0; j < ROUND; j++) sum += shared[tap * THREADS + 32 * j + lane];
        if (per == 1) {
#pragma unroll
            for (int flip = 16; flip > 0; flip /= 2) sum += __shfl_xor_sync(~0u, sum, flip);
        }
        if (round + tap < TAPS && lane < per && first + lane < channels)
            to[stride * (first + lane) + tap_stride * (round + tap)] = sum;
    }
}

// partial: [split][k][tap]. Items of t: tiles of all images' dy, one channel.
template <int TILE_ROWS, int COLUMNS, bool ALIGNED>
DEVICE void grad_weight(const Conv &g, const Tiles &t, const Element *x, const Element *dy, Sum *partial, int splits) {
    SHARED_MEMORY(memory);
    const int per = t.channels_last ? 32 : 1, lanes = THREADS / per, channels = g.groups * g.outputs;
    const int blocks = ceil_div(channels, per), lane = threadIdx.x / per;
    const Index share = ceil_div((Index)t.items, (Index)splits);
    for (Index item = blockIdx.x; item < (Index)blocks * splits; item += gridDim.x) {
        const int first = (int)(item % blocks) * per, split_number = (int)(item / blocks);
        const int k = min(first + (int)threadIdx.x % per, channels - 1), c = g.outputs == 1 ? k : k / g.outputs;
        const Index begin = share * split_number, end = min(begin + share, (Index)t.items);
        Sum sums[TAPS] = {};
        for (Index tile = begin + lane; tile < end; tile += lanes) {
            int tile_row, tile_column;
            const Index n = split(split(tile, t.columns, tile_column), t.rows, tile_row);
            const int h = tile_row * TILE_ROWS, column = tile_column * COLUMNS;
            const Element *gradient = dy + (Index)g.y[0] * n + (Index)g.y[1] * k;
            Sum d[TILE_ROWS][COLUMNS];
#pragma unroll
            for (int i = 0; i < TILE_ROWS; i++) {
                const bool inside = h + i < g.output[1];
                const Element *row = gradient + (Index)g.y[3] * (h + i);
                if constexpr (ALIGNED)
                    load_row_aligned<COLUMNS, 0>(row, column, g.output[2], inside, Sum(0), d[i]);
                else
                    load_row<COLUMNS>(row, (Index)g.y[4], column, g.output[2], inside, Sum(0), d[i]);
            }
            const Element *plane = x + (Index)g.x[0] * n + (Index)g.x[1] * c;
            each_row<TILE_ROWS, COLUMNS, ALIGNED>(g, plane, h, column, [&](int r, const auto &v) {
#pragma unroll
                for (int i = 0; i < TILE_ROWS; i++) {
                    const int from = r - i * S;
                    if (from < 0 || from >= K || h + i >= g.output[1]) continue;  // no row: infinite x times 0 is NaN
#pragma unroll
                    for (int s = 0; s < K; s++)
#pragma unroll
                        for (int j = 0; j < COLUMNS; j++)
                            sums[from * K + s] = multiply_add(v[j * S + s], d[i][j], sums[from * K + s]);
                }
            });
        }
        add_up(sums, (Sum *)memory, per, first, channels, partial + (long long)split_number * channels * TAPS, TAPS, 1);
    }
}

#define WEIGHT_GRADIENT                                                                                               \
    const Conv g, const Tiles t, const Element *__restrict__ x, const Element *__restrict__ dy,                       \
        Sum *__restrict__ partial, const int splits

KERNEL(THREADS, WEIGHT_BLOCKS) depthwise_grad_weight(WEIGHT_GRADIENT) {
    grad_weight<TALL_ROWS, 1, false>(g, t, x, dy, partial, splits);
}
KERNEL(THREADS, WEIGHT_BLOCKS) depthwise_grad_weight_fours(WEIGHT_GRADIENT) {
    grad_weight<ROWS, 4, true>(g, t, x, dy, partial, splits);
}
KERNEL(THREADS, ACROSS_BLOCKS) depthwise_grad_weight_across(WEIGHT_GRADIENT) {
    grad_weight<ROWS, 4, false>(g, t, x, dy, partial, splits);
}
