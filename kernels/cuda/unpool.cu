// Max unpooling and its gradient: values moved to, or from, where an index says.
//
//   forward   y[n, c, i]  = x[n, c, o] of the last o with indices[n, c, o] = i; 0 where there is none
//   gradient  dx[n, c, o] = dy[n, c, indices[n, c, o]]; 0 where the index is outside of the plane
//
// Any index may say any position of its plane, several the same. So a block takes a piece of the plane and looks at all
// indices of it; what falls into the piece leaves its number in shared memory, the largest wins by an atomic maximum:
//
//      indices of the plane   17   3  900   3  -1 ...        every block of the plane reads all of them (from L2)
//                                 \    \    \
//      winners (shared)       [ . . . o=4 . . . | ... ]      pieces of 12,288 / GROUP positions, GROUP channels
//      y                      [ 0 0 0 x[3] 0 0 0 | ... ]     every element written once, in order
//
// A maximum is the same in any order, so the result is. Channels first GROUP is 1; last it is 8, so that a warp reads
// 8 neighbouring channels of 4 pixels: sectors of 32 bytes.
//
// Memory: x and y once, indices once from memory and again from L2 for each further piece. It loses on large planes
// channels last (112x112: nine pieces); a scatter into memory would have to clear y first and write whole sectors twice.
#include "pool.cuh"

constexpr int THREADS = 256, PIECE = 12288;

// Where flat position i of a plane of this size lies.
DEVICE Index position_in(const int size[3], const long long by[5], int i) {
    const int line = i / size[2];
    return (Index)by[4] * (i - line * size[2]) + (Index)by[3] * (line % size[1]) + (Index)by[2] * (line / size[1]);
}

// The struct is the pooling's that is undone: y has its input's size, x and the indices its output's. `flat`: planes
// of all arrays can be walked with the stride of w.
KERNEL(THREADS, 4) unpool_forward(const Pool g, const Element *__restrict__ x, const void *__restrict__ indices,
                                  Element *__restrict__ y, const int group, const int flat) {
    SHARED_MEMORY(memory);
    int *winners = (int *)memory;
    const int plane = g.input[0] * g.input[1] * g.input[2], given = g.output[0] * g.output[1] * g.output[2];
    const int length = min(PIECE / group, plane);
    const int pieces = ceil_div(plane, length), groups = ceil_div(g.channels, group);
    const Index items = (Index)g.batch * groups * pieces;
    const int channel = threadIdx.x % group, lane = threadIdx.x / group, lanes = THREADS / group;
    for (Index item = blockIdx.x; item < items; item += gridDim.x) {
        const int begin = (int)(item % pieces) * length, n = (int)(item / pieces / groups);
        const int c = (int)(item / pieces % groups) * group + channel, count = min(length, plane - begin);
        const bool inside = c < g.channels;
        // What a thread clears here it alone has read of the last piece.
        for (int i = threadIdx.x; i < length * group; i += THREADS) winners[i] = 0;
        __syncthreads();
        if (inside) {
            const Index first = offset(g.indices, n, c, 0, 0, 0);
            for (int o = lane; o < given; o += lanes) {
                const Index at = flat ? (Index)g.indices[4] * o : position_in(g.output, g.indices, o);
                const long long to = get_index(indices, g.index_bytes, first + at) - begin;
                if (to >= 0 && to < count) atomicMax(winners + (int)to * group + channel, o + 1);
            }
        }
        __syncthreads();
        if (inside) {
            const Element *values = x + offset(g.x, n, c, 0, 0, 0);
            Element *out = y + offset(g.y, n, c, 0, 0, 0);
            for (int i = lane; i < count; i += lanes) {
                const int o = winners[i * group + channel] - 1;
                Element v = narrow<Element>(Sum(0));
                if (o >= 0) v = values[flat ? (Index)g.x[4] * o : position_in(g.output, g.x, o)];
                out[flat ? (Index)g.y[4] * (begin + i) : position_in(g.input, g.y, begin + i)] = v;
            }
        }
    }
}

KERNEL(THREADS, 4) unpool_gradient(const Pool g, const Tiles t, const Element *__restrict__ dy,
                                   const void *__restrict__ indices, Element *__restrict__ dx, const int flat) {
    const int plane = g.input[0] * g.input[1] * g.input[2];
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < (Index)t.items; i += (Index)gridDim.x * THREADS) {
        const Place p = place(i, t);
        const long long from = get_index(indices, g.index_bytes, offset(g.indices, p));
        Element v = narrow<Element>(Sum(0));
        if (from >= 0 && from < plane) {
            const Index at = flat ? (Index)g.dy[4] * (Index)from : position_in(g.input, g.dy, (int)from);
            v = dy[offset(g.dy, p.n, p.c, 0, 0, 0) + at];
        }
        dx[offset(g.dx, p)] = v;
    }
}
