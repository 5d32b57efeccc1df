// Depthwise convolution for every kernel, stride, dilation, rank, padding mode and element type.
//
// The equations are those of depthwise.cu, with three axes: one input channel a group, m output channels.
//
//   forward      a thread one output: the taps one after the other, neighbours read neighbours
//   grad_input   a thread one element of dx, zero padding: the outputs that read it, for all m
//   grad_weight  a block CHUNK taps of one channel and a share of the positions: a thread keeps CHUNK sums, the block
//                adds them in shared memory in a fixed order, a second kernel adds the shares in order
//
// Memory: every array once, what taps share comes from the L1 cache: about 10 instructions a tap. So kernels of up to
// about 5 taps a thread run at memory's speed, others are bound by instructions; depthwise.cu needs a fraction of them
// where it is able. grad_weight reads dy once for each CHUNK taps.
#include "conv.cuh"
#include "epilogue.cuh"
#include "tile.cuh"

constexpr int THREADS = 256, CHUNK = 8;

#define EACH_ITEM(flat) \
    for (Index flat = (Index)blockIdx.x * THREADS + threadIdx.x; flat < (Index)t.items; flat += (Index)gridDim.x * THREADS)

DEVICE Index offset(const long long by[5], const Place &p) {
    return (Index)by[0] * p.n + (Index)by[1] * p.c + (Index)by[2] * p.d + (Index)by[3] * p.h + (Index)by[4] * p.w;
}

DEVICE int input_of(const Conv &g, int axis, int o, int tap) {
    return source(o * g.stride[axis] + tap * g.dilation[axis] - g.padding[axis], g.input[axis], g.mode);
}

KERNEL(THREADS, 4) depthwise_any(const Conv g, const Tiles t, const Element *__restrict__ x, const Element *__restrict__ w,
                                 const Element *__restrict__ bias, const Element *__restrict__ residual,
                                 Element *__restrict__ y) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const int c = g.outputs == 1 ? p.c : p.c / g.outputs;
        const Element *volume = x + (Index)g.x[0] * p.n + (Index)g.x[1] * c, *weights = w + (Index)g.w[0] * p.c;
        Sum sum = 0;
        for (int d = 0; d < g.kernel[0]; d++) {
            const int z = input_of(g, 0, p.d, d);
            for (int r = 0; r < g.kernel[1]; r++) {
                const int h = input_of(g, 1, p.h, r);
                const bool inside = z >= 0 && h >= 0;
                const Element *row = volume + (Index)g.x[2] * z + (Index)g.x[3] * h;
                const Element *tap = weights + (Index)g.w[2] * d + (Index)g.w[3] * r;
#pragma unroll 4
                for (int s = 0; s < g.kernel[2]; s++) {
                    const int v = input_of(g, 2, p.w, s);
                    const Sum value = inside && v >= 0 ? widen(row[(Index)g.x[4] * v]) : Sum(0);
                    sum = multiply_add(value, widen(tap[(Index)g.w[4] * s]), sum);
                }
            }
        }
        y[offset(g.y, p)] = finish<Element>(sum, bias, p.c, residual, offset(g.residual, p), g.activation);
    }
}

// The output whose tap reads element i, or -1.
DEVICE int reader(const Conv &g, int axis, int i, int tap) {
    const int q = i + g.padding[axis] - tap * g.dilation[axis], stride = g.stride[axis];
    if (q < 0) return -1;
    const int o = stride == 1 ? q : q / stride;
    return o * stride == q && o < g.output[axis] ? o : -1;
}

KERNEL(THREADS, 3) depthwise_any_grad_input(const Conv g, const Tiles t, const Element *__restrict__ dy,
                                            const Element *__restrict__ w, const Element *__restrict__ bias,
                                            const Element *__restrict__ residual, Element *__restrict__ dx) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const Element *gradient = dy + (Index)g.y[0] * p.n + (Index)g.y[1] * p.c * g.outputs;
        const Element *weights = w + (Index)g.w[0] * p.c * g.outputs;
        Sum sum = 0;
        for (int d = 0; d < g.kernel[0]; d++) {
            const int z = reader(g, 0, p.d, d);
            if (z < 0) continue;
            for (int r = 0; r < g.kernel[1]; r++) {
                const int h = reader(g, 1, p.h, r);
                if (h < 0) continue;
                for (int s = 0; s < g.kernel[2]; s++) {
                    const int v = reader(g, 2, p.w, s);
                    if (v < 0) continue;
                    const Index from = (Index)g.y[2] * z + (Index)g.y[3] * h + (Index)g.y[4] * v;
                    const Index tap = (Index)g.w[2] * d + (Index)g.w[3] * r + (Index)g.w[4] * s;
                    for (int m = 0; m < g.outputs; m++)
                        sum = multiply_add(widen(gradient[from + (Index)g.y[1] * m]), widen(weights[tap + (Index)g.w[0] * m]), sum);
                }
            }
        }
        dx[offset(g.x, p)] = finish<Element>(sum, bias, p.c, residual, offset(g.residual, p), g.activation);
    }
}

// partial: [split][k][tap]. Items of t: positions of all images' dy, one channel.
KERNEL(THREADS, 2) depthwise_any_grad_weight(const Conv g, const Tiles t, const Element *__restrict__ x,
                                             const Element *__restrict__ dy, Sum *__restrict__ partial, const int splits) {
    SHARED_MEMORY(memory);
    Sum *shared = (Sum *)memory;
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2], chunks = ceil_div(taps, CHUNK);
    const int channels = g.groups * g.outputs, i = threadIdx.x;
    const Index share = ceil_div((Index)t.items, (Index)splits);
    for (Index item = blockIdx.x; item < (Index)channels * chunks * splits; item += gridDim.x) {
        const int first = (int)(item % chunks) * CHUNK, k = (int)(item / chunks % channels);
        const int split_number = (int)(item / chunks / channels);
        const int c = g.outputs == 1 ? k : k / g.outputs;
        int d[CHUNK], r[CHUNK], s[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            const int tap = min(first + j, taps - 1);
            d[j] = tap / g.kernel[2] / g.kernel[1], r[j] = tap / g.kernel[2] % g.kernel[1], s[j] = tap % g.kernel[2];
        }
        const Index begin = share * split_number, end = min(begin + share, (Index)t.items);
        Sum sums[CHUNK] = {};
        for (Index at = begin + i; at < end; at += THREADS) {
            Place p;
            p.n = (int)split(split(split(at, t.columns, p.w), t.rows, p.h), t.depth, p.d);
            p.c = k;
            const Sum v = widen(dy[offset(g.y, p)]);
            const Element *volume = x + (Index)g.x[0] * p.n + (Index)g.x[1] * c;
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                const int z = input_of(g, 0, p.d, d[j]), h = input_of(g, 1, p.h, r[j]), q = input_of(g, 2, p.w, s[j]);
                const bool inside = z >= 0 && h >= 0 && q >= 0;
                const Sum value = inside ? widen(volume[(Index)g.x[2] * z + (Index)g.x[3] * h + (Index)g.x[4] * q]) : Sum(0);
                sums[j] = multiply_add(value, v, sums[j]);
            }
        }
        __syncthreads();  // what was read before is no longer needed
#pragma unroll
        for (int j = 0; j < CHUNK; j++) shared[j * THREADS + i] = sums[j];
        __syncthreads();
        const int tap = i / 32, lane = i % 32;  // a warp a tap
        Sum sum = 0;
        for (int j = 0; j < THREADS / 32; j++) sum += shared[tap * THREADS + 32 * j + lane];
        for (int flip = 16; flip > 0; flip /= 2) sum += __shfl_xor_sync(~0u, sum, flip);
        if (lane == 0 && first + tap < taps) partial[((Index)split_number * channels + k) * taps + first + tap] = sum;
    }
}

// dw = the sum of its shares, in order.
KERNEL(THREADS, 4) depthwise_add_splits(const Conv g, const Sum *__restrict__ partial, Element *__restrict__ dw,
                                        const int splits) {
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    const Index count = (Index)g.groups * g.outputs * taps;
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < count; i += (Index)gridDim.x * THREADS) {
        Sum sum = 0;
        for (int split_number = 0; split_number < splits; split_number++) sum += partial[split_number * count + i];
        const int tap = (int)(i % taps);
        dw[(Index)g.w[0] * (i / taps) + (Index)g.w[2] * (tap / g.kernel[2] / g.kernel[1]) +
           (Index)g.w[3] * (tap / g.kernel[2] % g.kernel[1]) + (Index)g.w[4] * (tap % g.kernel[2])] = narrow<Element>(sum);
    }
}
