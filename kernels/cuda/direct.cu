// Direct convolution, for everything: any rank, strides of arrays, groups, dilation, padding mode and element type.
//
//   forward      y[n, k, p]  = sum over r, c  w[k, c, r] * x[n, c, source(p * stride + r * dilation - padding)]
//   grad_input   dx[n, c, i] = sum over r, k  w[k, c, r] * dy[n, k, p]      every p whose tap r reads element i
//   grad_weight  dw[k, c, r] = sum over n, p  dy[n, k, p] * x[n, c, source(p * stride + r * dilation - padding)]
//
// Thread mapping of the first two. A block of 128 threads computes PIXELS * 128 positions (of all images, w fastest) of
// CHANNELS channels of one group; a thread PIXELS positions, 128 apart, times CHANNELS, in registers:
//
//                 positions ->
//      channel 0  t0 t1 ... t127 | t0 t1 ... t127        every thread: PIXELS x CHANNELS sums
//      channel 1  t0 t1 ... t127 | t0 t1 ... t127        a step:  PIXELS loads of x (neighbours, one line a warp)
//         ...                                                     CHANNELS weights from shared memory (broadcast)
//      channel 7  t0 t1 ... t127 | t0 t1 ... t127                 PIXELS * CHANNELS multiply-adds
//
// The reduction runs over taps, then channels, in chunks of CHUNK steps. The block stages a chunk of weights in shared
// memory as [step][CHANNELS]; a thread finds where a tap reads once, then walks along the channels.
//
// grad_weight: a thread has one column (c, r) of the weights and CHANNELS output channels; the block stages a chunk of
// dy as [position][CHANNELS], and every thread reads x along output rows. Where there are few weights and many
// positions, the positions are cut into splits, whose sums a second kernel adds in order: no atomics, so the same bits
// on every run. A sum rounds at most CHUNK times, and once more a chunk.
//
// Memory: x is read taps times from the L1 and L2 caches, once from memory where the working set fits; weights once a
// block. Fast enough where the reduction is short or odd; it loses to an implicit GEMM wherever that is able: one load
// for CHANNELS multiply-adds, against one for 64 there. grad_input with a stride looks at taps that no output has: a
// thread skips them, and its warp waits. Narrow groups compute channels in vain.
#include "conv.cuh"
#include "epilogue.cuh"

constexpr int THREADS = 128, PIXELS = 2, CHANNELS = 8, CHUNK = 64;

// A tap's place in the kernel.
struct Tap { int d, r, s; };

DEVICE Tap tap_at(int tap, const int kernel[3]) {
    return {tap / kernel[2] / kernel[1], tap / kernel[2] % kernel[1], tap % kernel[2]};
}

// Stage steps first ... first + count of the reduction, for channels k ... k + CHANNELS of the group: [step][CHANNELS].
// w_out and w_in are the weights' strides along the channels computed and summed over.
DEVICE void stage_weights(const Conv &g, const Element *w, Index w_out, Index w_in, int outputs, int inputs, int k,
                          Index first, int count, Sum *staged) {
    for (int i = threadIdx.x; i < count * CHANNELS; i += THREADS) {
        const int channel = i % CHANNELS;
        const Index step = first + i / CHANNELS;
        const Tap tap = tap_at((int)(step / inputs), g.kernel);
        const Index at = (Index)g.w[2] * tap.d + (Index)g.w[3] * tap.r + (Index)g.w[4] * tap.s + w_in * (int)(step % inputs);
        staged[i] = k + channel < outputs ? widen(w[at + w_out * (k + channel)]) : Sum(0);
    }
}

// Where a tap reads for each of a thread's positions, and whether it does.
struct Reads {
    Index offset[PIXELS];
    bool inside[PIXELS];
};

// Add count channels, from what a tap reads on, times the staged weights. Outside of the array zeros are multiplied,
// which infinite weights make NaN of, or (SKIP) nothing is added.
template <bool SKIP>
DEVICE void accumulate(Sum sums[PIXELS][CHANNELS], const Element *x, Index step, const Reads &reads, const Sum *staged,
                       int count) {
#pragma unroll 2
    for (int c = 0; c < count; c++) {
        Sum v[PIXELS];
#pragma unroll
        for (int i = 0; i < PIXELS; i++) v[i] = reads.inside[i] ? widen(x[reads.offset[i] + step * c]) : Sum(0);
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) {
            const Sum weight = staged[c * CHANNELS + k];
#pragma unroll
            for (int i = 0; i < PIXELS; i++) {
                const Sum sum = multiply_add(v[i], weight, sums[i][k]);
                sums[i][k] = !SKIP || reads.inside[i] ? sum : sums[i][k];
            }
        }
    }
}

// Write a thread's sums: channels k ... of a group of `outputs`, strides of out and of the residual as in Conv.
DEVICE void write(const Sum sums[PIXELS][CHANNELS], const Position at[PIXELS], Index first, Index pixels, int k,
                  int group, int outputs, const Element *bias, const Element *residual, const long long by[5],
                  const long long residual_by[5], Element *out, int activation) {
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
        if (first + i * THREADS >= pixels) break;
        const Position p = at[i];
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            if (k + j >= outputs) break;
            const int channel = group * outputs + k + j;
            const Index there = (Index)by[0] * p.n + (Index)by[1] * channel + (Index)by[2] * p.d + (Index)by[3] * p.h +
                                (Index)by[4] * p.w;
            const Index other = (Index)residual_by[0] * p.n + (Index)residual_by[1] * channel +
                                (Index)residual_by[2] * p.d + (Index)residual_by[3] * p.h + (Index)residual_by[4] * p.w;
            out[there] = finish<Element>(sums[i][j], bias, channel, residual, other, activation);
        }
    }
}

KERNEL(THREADS, 4) direct_forward(const Conv g, const Element *__restrict__ x, const Element *__restrict__ w,
                               const Element *__restrict__ bias, const Element *__restrict__ residual,
                               Element *__restrict__ y) {
    SHARED_MEMORY(memory);
    Sum *staged = (Sum *)memory;
    const Index pixels = (Index)g.batch * g.output[0] * g.output[1] * g.output[2];
    const int blocks = ceil_div(g.outputs, CHANNELS);
    const Index items = ceil_div(pixels, Index(THREADS * PIXELS)) * g.groups * blocks;
    const Index steps = (Index)g.kernel[0] * g.kernel[1] * g.kernel[2] * g.inputs;
    for (Index item = blockIdx.x; item < items; item += gridDim.x) {
        const int k = (int)(item % blocks) * CHANNELS, group = (int)(item / blocks % g.groups);
        const Index first = item / blocks / g.groups * (THREADS * PIXELS) + threadIdx.x;
        const Element *input = x + (Index)g.x[1] * group * g.inputs;
        const Element *weights = w + (Index)g.w[0] * group * g.outputs;

        Position at[PIXELS];
        Sum sums[PIXELS][CHANNELS] = {};
#pragma unroll
        for (int i = 0; i < PIXELS; i++) at[i] = position(min(first + i * THREADS, pixels - 1), g.output);

        for (Index from = 0; from < steps; from += CHUNK) {
            const int count = (int)min(Index(CHUNK), steps - from);
            __syncthreads();  // the last chunk has been used
            stage_weights(g, weights, (Index)g.w[0], (Index)g.w[1], g.outputs, g.inputs, k, from, count, staged);
            __syncthreads();
            for (int done = 0; done < count;) {
                const Tap tap = tap_at((int)((from + done) / g.inputs), g.kernel);
                const int c = (int)((from + done) % g.inputs), run = min(g.inputs - c, count - done);
                Reads reads;
#pragma unroll
                for (int i = 0; i < PIXELS; i++) {
                    const int d = source(at[i].d * g.stride[0] + tap.d * g.dilation[0] - g.padding[0], g.input[0], g.mode);
                    const int h = source(at[i].h * g.stride[1] + tap.r * g.dilation[1] - g.padding[1], g.input[1], g.mode);
                    const int v = source(at[i].w * g.stride[2] + tap.s * g.dilation[2] - g.padding[2], g.input[2], g.mode);
                    reads.inside[i] = d >= 0 && h >= 0 && v >= 0;
                    reads.offset[i] = (Index)g.x[0] * at[i].n + (Index)g.x[1] * c + (Index)g.x[2] * d +
                                      (Index)g.x[3] * h + (Index)g.x[4] * v;
                }
                accumulate<false>(sums, input, (Index)g.x[1], reads, staged + done * CHANNELS, run);
                done += run;
            }
        }
        write(sums, at, first, pixels, k, group, g.outputs, bias, residual, g.y, g.residual, y, g.activation);
    }
}

// The j-th position of a padded axis that may show element i: i itself, then those in the padding, the nearest first
// before and after. Far outside where it shows another element.
DEVICE int image(int i, int j, int n, int before, int mode) {
    if (j == 0) return i;
    const int p = j <= before ? -j : n + j - before - 1;
    return source(p, n, mode) == i ? p : -(1 << 30);
}

// The output position whose tap lies on padded position p, or -1.
DEVICE int reader(int p, int tap, int axis, const Conv &g) {
    const int q = p + g.padding[axis] - tap * g.dilation[axis];
    if (q < 0 || q % g.stride[axis]) return -1;
    return q / g.stride[axis] < g.output[axis] ? q / g.stride[axis] : -1;
}

KERNEL(THREADS, 4) direct_grad_input(const Conv g, const Element *__restrict__ dy, const Element *__restrict__ w,
                                  const Element *__restrict__ bias, const Element *__restrict__ residual,
                                  Element *__restrict__ dx) {
    SHARED_MEMORY(memory);
    Sum *staged = (Sum *)memory;
    const Index pixels = (Index)g.batch * g.input[0] * g.input[1] * g.input[2];
    const int blocks = ceil_div(g.inputs, CHANNELS);
    const Index items = ceil_div(pixels, Index(THREADS * PIXELS)) * g.groups * blocks;
    const Index steps = (Index)g.kernel[0] * g.kernel[1] * g.kernel[2] * g.outputs;
    int images[3];
#pragma unroll
    for (int a = 0; a < 3; a++) images[a] = g.mode == ZEROS ? 1 : 1 + g.padding[a] + g.padding_after[a];
    for (Index item = blockIdx.x; item < items; item += gridDim.x) {
        const int k = (int)(item % blocks) * CHANNELS, group = (int)(item / blocks % g.groups);
        const Index first = item / blocks / g.groups * (THREADS * PIXELS) + threadIdx.x;
        const Element *gradient = dy + (Index)g.y[1] * group * g.outputs;
        const Element *weights = w + (Index)g.w[0] * group * g.outputs;

        Position at[PIXELS];
        Sum sums[PIXELS][CHANNELS] = {};
#pragma unroll
        for (int i = 0; i < PIXELS; i++) at[i] = position(min(first + i * THREADS, pixels - 1), g.input);

        for (Index from = 0; from < steps; from += CHUNK) {
            const int count = (int)min(Index(CHUNK), steps - from);
            __syncthreads();  // the last chunk has been used
            stage_weights(g, weights, (Index)g.w[1], (Index)g.w[0], g.inputs, g.outputs, k, from, count, staged);
            __syncthreads();
            for (int done = 0; done < count;) {
                const Tap tap = tap_at((int)((from + done) / g.outputs), g.kernel);
                const int c = (int)((from + done) % g.outputs), run = min(g.outputs - c, count - done);
                for (int j = 0; j < images[0] * images[1] * images[2]; j++) {
                    Reads reads;
#pragma unroll
                    for (int i = 0; i < PIXELS; i++) {
                        const int jd = j / images[2] / images[1], jh = j / images[2] % images[1], jw = j % images[2];
                        const int d = reader(image(at[i].d, jd, g.input[0], g.padding[0], g.mode), tap.d, 0, g);
                        const int h = reader(image(at[i].h, jh, g.input[1], g.padding[1], g.mode), tap.r, 1, g);
                        const int v = reader(image(at[i].w, jw, g.input[2], g.padding[2], g.mode), tap.s, 2, g);
                        reads.inside[i] = d >= 0 && h >= 0 && v >= 0;
                        reads.offset[i] = (Index)g.y[0] * at[i].n + (Index)g.y[1] * c + (Index)g.y[2] * d +
                                          (Index)g.y[3] * h + (Index)g.y[4] * v;
                    }
                    bool any = false;
#pragma unroll
                    for (int i = 0; i < PIXELS; i++) any |= reads.inside[i];
                    if (any) accumulate<true>(sums, gradient, (Index)g.y[1], reads, staged + done * CHANNELS, run);
                }
                done += run;
            }
        }
        write(sums, at, first, pixels, k, group, g.inputs, bias, residual, g.x, g.residual, dx, g.activation);
    }
}

// The offset in an array of weights of output channel k of all groups and column (c, tap) of its group.
DEVICE Index weight_at(const Conv &g, int k, int column) {
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    const Tap tap = tap_at(column % taps, g.kernel);
    return (Index)g.w[0] * k + (Index)g.w[1] * (column / taps) + (Index)g.w[2] * tap.d + (Index)g.w[3] * tap.r +
           (Index)g.w[4] * tap.s;
}

// partial: null where splits is 1, else [split][k][column] of Sum.
KERNEL(THREADS, 4) direct_grad_weight(const Conv g, const Element *__restrict__ x, const Element *__restrict__ dy,
                                   Element *__restrict__ dw, Sum *__restrict__ partial, const int splits) {
    SHARED_MEMORY(memory);
    Sum *staged = (Sum *)memory;
    const Index positions = (Index)g.batch * g.output[0] * g.output[1] * g.output[2];
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2], columns = g.inputs * taps;
    const int blocks = ceil_div(g.outputs, CHANNELS), column_blocks = ceil_div(columns, THREADS);
    const Index items = (Index)splits * g.groups * blocks * column_blocks;
    const Index share = ceil_div(ceil_div(positions, Index(splits)), Index(CHUNK)) * CHUNK;
    for (Index item = blockIdx.x; item < items; item += gridDim.x) {
        const int column = (int)(item % column_blocks) * THREADS + threadIdx.x;
        const int k = (int)(item / column_blocks % blocks) * CHANNELS;
        const int group = (int)(item / column_blocks / blocks % g.groups);
        const int split = (int)(item / column_blocks / blocks / g.groups);
        const int c = min(column, columns - 1) / taps;
        const Tap tap = tap_at(column % taps, g.kernel);
        const int reach_d = tap.d * g.dilation[0] - g.padding[0], reach_h = tap.r * g.dilation[1] - g.padding[1];
        const int reach_w = tap.s * g.dilation[2] - g.padding[2];
        const Element *plane = x + (Index)g.x[1] * (group * g.inputs + c);
        const Element *gradient = dy + (Index)g.y[1] * group * g.outputs;
        const Index begin = share * split, end = min(begin + share, positions);

        Sum totals[CHANNELS] = {};
        for (Index from = begin; from < end; from += CHUNK) {
            const int count = (int)min(Index(CHUNK), end - from);
            __syncthreads();  // the last chunk has been used
            for (int i = threadIdx.x; i < CHUNK * CHANNELS; i += THREADS) {
                const int step = i % CHUNK, channel = k + i / CHUNK;  // neighbours read neighbours
                if (step >= count) continue;
                const Position p = position(from + step, g.output);
                const Index offset = (Index)g.y[0] * p.n + (Index)g.y[1] * channel + (Index)g.y[2] * p.d +
                                     (Index)g.y[3] * p.h + (Index)g.y[4] * p.w;
                staged[step * CHANNELS + i / CHUNK] = channel < g.outputs ? widen(gradient[offset]) : Sum(0);
            }
            __syncthreads();
            Sum sums[CHANNELS] = {};
            for (int done = 0; done < count;) {
                const Position p = position(from + done, g.output);
                const int run = min(g.output[2] - p.w, count - done);
                const int d = source(p.d * g.stride[0] + reach_d, g.input[0], g.mode);
                const int h = source(p.h * g.stride[1] + reach_h, g.input[1], g.mode);
                const bool row_inside = d >= 0 && h >= 0;
                const Element *row = plane + (Index)g.x[0] * p.n + (Index)g.x[2] * d + (Index)g.x[3] * h;
                int v = p.w * g.stride[2] + reach_w;
                for (int i = done; i < done + run; i++, v += g.stride[2]) {
                    const int s = source(v, g.input[2], g.mode);
                    const Sum value = row_inside && s >= 0 ? widen(row[(Index)g.x[4] * s]) : Sum(0);
#pragma unroll
                    for (int j = 0; j < CHANNELS; j++)
                        sums[j] = multiply_add(value, staged[i * CHANNELS + j], sums[j]);
                }
                done += run;
            }
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) totals[j] += sums[j];
        }
        if (column >= columns) continue;
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            if (k + j >= g.outputs) break;
            const int channel = group * g.outputs + k + j;
            if (splits == 1)
                dw[weight_at(g, channel, column)] = narrow<Element>(totals[j]);
            else
                partial[((Index)split * g.groups * g.outputs + channel) * columns + column] = totals[j];
        }
    }
}

// dw = the sum of its splits, in order.
KERNEL(THREADS, 4) direct_add_splits(const Conv g, const Sum *__restrict__ partial, Element *__restrict__ dw,
                                  const int splits) {
    const int columns = g.inputs * g.kernel[0] * g.kernel[1] * g.kernel[2];
    const Index count = (Index)g.groups * g.outputs * columns;
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < count; i += (Index)gridDim.x * THREADS) {
        Sum sum = 0;
        for (int s = 0; s < splits; s++) sum += partial[s * count + i];
        dw[weight_at(g, (int)(i / columns), (int)(i % columns))] = narrow<Element>(sum);
    }
}
