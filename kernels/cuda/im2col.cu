// Convolution as an implicit matrix product: im2col's matrix is read tile by tile and never stored.
//
//   y[p, k] = sum over tap, c  x[n, c, source(p * stride + tap * dilation - padding)] * w[tap, c, k]
//
//   rows: output positions p of all images      columns: output channels k of a group      depth: taps, channels c
//
//                        w  packed: [group][step of 16 (tap, c)][k], k padded to fours
//                      +--------+
//            depth     |  tile  |      channels of a tap before the next tap
//                      +--------+
//      +-----------+   +--------+
//      |   tile    |   |  y     |      blocks: column tiles fastest, so that those of one row tile read x together,
//      +-----------+   +--------+      then rows, groups, parts of the reduction
//        im2col(x)
//
// GATHER says how a step of x comes into shared memory as [16 of (tap, c)][rows]. The main loop divides nothing: what a
// tap shows at each position is found when the tap begins.
//
//   POSITIONS   lanes along positions, 4 bytes each: planes of channels-first. A thread serves one position.
//   CHANNELS    channels side by side: lanes along 8 channels of 4 positions, 4 bytes each. A thread for each position
//               leaves the address in shared memory when a tap begins; copying threads read it there.
//   FEW         few channels: a step of 16 goes on across taps, none is padded. Lanes along positions; a table of the
//               reduction in shared memory has offset and tap of each (tap, c).
//   QUADS       1x1 of stride 1 on contiguous planes: 16 bytes, four positions a lane.
//
// Memory: x is read (columns / tile) times, from the L1 and L2 caches but for the first; taps overlap there. It loses
// where the depth or the columns are too few for a tile (direct, depthwise), and to Winograd's fewer products.
#include "conv.cuh"
#include "gemm.cuh"

enum Gather { POSITIONS, CHANNELS, FEW, QUADS };

// The next step's weights: DEPTH rows of the packed matrix, 16 bytes a lane.
struct Weights {
    static constexpr int QUADS = COLUMNS / 4, PASS = THREADS / QUADS;  // rows a pass of the block
    static_assert(PASS <= DEPTH, "a thread copies at least once");
    const float *from;
    int pitch;

    DEVICE Weights(const float *packed, int columns, long long first, int column) : pitch(columns + 3 & ~3) {
        const int n = min(column + (int)threadIdx.x % QUADS * 4, pitch - 4);  // beyond: columns that are never written
        from = packed + (first * DEPTH + threadIdx.x / QUADS) * pitch + n;
    }
    DEVICE void copy(float *b) {
        b += threadIdx.x / QUADS * COLUMN_PITCH + threadIdx.x % QUADS * 4;
#pragma unroll
        for (int k = 0; k < DEPTH; k += PASS, from += PASS * pitch) copy_async<16>(b + k * COLUMN_PITCH, from, true);
    }
};

// A position of the output, and where its taps read.
struct Window {
    const float *image;
    int d, h, w;

    Window() = default;
    DEVICE Window(const Conv &g, const float *x, int row) {
        const Position at = position(row, g.output);
        image = x + at.n * g.x[0];
        d = at.d * g.stride[0] - g.padding[0];
        h = at.h * g.stride[1] - g.padding[1];
        w = at.w * g.stride[2] - g.padding[2];
    }
    // The first channel's element that a tap shows, dilated offsets given; null where it shows a zero.
    DEVICE const float *find(const Conv &g, int td, int th, int tw) const {
        const int i = source(d + td, g.input[0], g.mode), j = source(h + th, g.input[1], g.mode);
        const int k = source(w + tw, g.input[2], g.mode);
        return (i | j | k) < 0 ? nullptr : image + i * g.x[2] + j * g.x[3] + k * g.x[4];
    }
};

// Channel and tap of a step.
struct Walk {
    int c, d, h, w;

    DEVICE Walk(const Conv &g, int first) {
        const int chunks = ceil_div(g.inputs, DEPTH);
        int tap = first / chunks;
        c = (first - tap * chunks) * DEPTH;
        w = tap % g.kernel[2], tap /= g.kernel[2];
        h = tap % g.kernel[1], d = tap / g.kernel[1];
    }
    // On to the next step; true where it begins a tap.
    DEVICE bool next(const Conv &g) {
        c += DEPTH;
        if (c < g.inputs) return false;
        c = 0;
        if (++w == g.kernel[2]) {
            w = 0;
            if (++h == g.kernel[1]) h = 0, d++;
        }
        return true;
    }
    DEVICE const float *find(const Conv &g, const Window &window) const {
        return window.find(g, d * g.dilation[0], h * g.dilation[1], w * g.dilation[2]);
    }
};

template <int GATHERED> struct Source;

// The windows of a tile's rows, in shared memory: a thread needs one when a tap begins, not in between.
DEVICE void stage_windows(const Conv &g, const float *x, int row, int rows) {
    if (threadIdx.x < ROWS) behind_stages<Window>()[threadIdx.x] = Window(g, x, min(row + (int)threadIdx.x, rows - 1));
    __syncthreads();
}
DEVICE const Window &staged_window() { return behind_stages<Window>()[threadIdx.x % ROWS]; }

template <> struct Source<POSITIONS> {
    static constexpr int PASS = THREADS / ROWS;  // channels a pass of the block
    const Conv &g;
    Walk walk;
    Weights weights;
    const float *from;
    bool inside;

    DEVICE Source(const Conv &g, const float *x, Weights weights, int row, int rows, int first, int)
        : g(g), walk(g, first), weights(weights) {
        stage_windows(g, x, row, rows);
        find();
    }
    DEVICE int channel() const { return PASS == 1 ? 0 : threadIdx.x / ROWS; }
    DEVICE void find() {
        const float *shown = walk.find(g, staged_window());
        inside = shown != nullptr;
        from = (inside ? shown : staged_window().image) + (walk.c + channel()) * g.x[1];
    }
    DEVICE void copy(float *a, float *b) {
        weights.copy(b);
        const long long pass = PASS * g.x[1];
        a += channel() * ROW_PITCH + threadIdx.x % ROWS;
        if (walk.c + DEPTH <= g.inputs) {
#pragma unroll
            for (int k = 0; k < DEPTH; k += PASS, from += pass) copy_async<4>(a + k * ROW_PITCH, from, inside);
        } else {  // zeros for the channels that are missing: what lies there may be NaN
#pragma unroll
            for (int k = 0; k < DEPTH; k += PASS, from += pass)
                copy_async<4>(a + k * ROW_PITCH, from, inside && walk.c + channel() + k < g.inputs);
        }
        if (walk.next(g)) find();
    }
};

template <> struct Source<CHANNELS> {
    static constexpr int LANES = 8, PASS = THREADS / LANES;  // positions a pass of the block
    const Conv &g;
    Walk walk;
    Weights weights;
    int half;  // of `shown`

    DEVICE Source(const Conv &g, const float *x, Weights weights, int row, int rows, int first, int)
        : g(g), walk(g, first), weights(weights), half(0) {
        stage_windows(g, x, row, rows);
        find();
    }
    // [2][ROWS]: where the tap reads at each position; the other half is the next tap's.
    DEVICE const float **shown() const { return (const float **)(behind_stages<Window>() + ROWS) + half; }
    DEVICE void find() {
        if (threadIdx.x < ROWS) shown()[threadIdx.x] = walk.find(g, staged_window());
    }
    DEVICE void copy(float *a, float *b) {
        weights.copy(b);
        const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES, c = walk.c + lane;
        a += lane * ROW_PITCH + first;
        const float *x[ROWS / PASS];  // read before they are copied: the compiler delays a copy that follows a load
#pragma unroll
        for (int i = 0; i < ROWS / PASS; i++) x[i] = shown()[first + i * PASS];
#pragma unroll
        for (int i = 0; i < ROWS / PASS; i++)
#pragma unroll
            for (int k = 0; k < DEPTH; k += LANES)
                copy_async<4>(a + k * ROW_PITCH + i * PASS, x[i] + (c + k), x[i] && c + k < g.inputs);
        if (walk.next(g)) half ^= ROWS, find();
    }
};

// One of a reduction of few channels.
struct Few {
    long long offset;
    int c, d, h, w;  // the tap's, dilated
};

template <> struct Source<FEW> {
    static constexpr int PASS = THREADS / ROWS;
    const Conv &g;
    Window window;
    Weights weights;
    const float *corner;  // of the window: outside of x where padding is
    const Few *next;
    int left;  // of the reduction, from this step on

    DEVICE Source(const Conv &g, const float *x, Weights weights, int row, int rows, int first, int steps)
        : g(g), window(g, x, min(row + (int)threadIdx.x % ROWS, rows - 1)), weights(weights) {
        Few *table = behind_stages<Few>();
        for (int i = threadIdx.x; i < steps * DEPTH; i += THREADS) {
            Few few;
            int tap = (first * DEPTH + i) / g.inputs;
            few.c = first * DEPTH + i - tap * g.inputs;
            few.w = tap % g.kernel[2] * g.dilation[2], tap /= g.kernel[2];
            few.h = tap % g.kernel[1] * g.dilation[1], few.d = tap / g.kernel[1] * g.dilation[0];
            few.offset = few.c * g.x[1] + few.d * g.x[2] + few.h * g.x[3] + few.w * g.x[4];
            table[i] = few;
        }
        next = table + threadIdx.x / ROWS;
        left = g.inputs * g.kernel[0] * g.kernel[1] * g.kernel[2] - first * DEPTH - (int)(threadIdx.x / ROWS);
        corner = window.image + window.d * g.x[2] + window.h * g.x[3] + window.w * g.x[4];
    }
    DEVICE void copy(float *a, float *b) {
        weights.copy(b);
        a += threadIdx.x / ROWS * ROW_PITCH + threadIdx.x % ROWS;
        if (g.mode == ZEROS) {
#pragma unroll
            for (int k = 0; k < DEPTH; k += 4 * PASS) {
                const float *x[4];  // read before they are copied, as above
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const Few &few = next[k + j * PASS];
                    const bool inside = (unsigned)(window.d + few.d) < (unsigned)g.input[0] &
                                        (unsigned)(window.h + few.h) < (unsigned)g.input[1] &
                                        (unsigned)(window.w + few.w) < (unsigned)g.input[2] & k + j * PASS < left;
                    x[j] = inside ? corner + few.offset : nullptr;
                }
#pragma unroll
                for (int j = 0; j < 4; j++) copy_async<4>(a + (k + j * PASS) * ROW_PITCH, x[j], x[j]);
            }
        } else {
#pragma unroll 1
            for (int k = 0; k < DEPTH; k += PASS) {
                const Few &few = next[k];
                const float *x = window.find(g, few.d, few.h, few.w) + few.c * g.x[1];
                copy_async<4>(a + k * ROW_PITCH, x, k < left);
            }
        }
        next += DEPTH, left -= DEPTH;
    }
};

template <> struct Source<QUADS> {
    static constexpr int PASS = THREADS / (ROWS / 4);
    const Conv &g;
    Weights weights;
    const float *from;
    int left, to;  // channels that follow; place in a stage

    DEVICE Source(const Conv &g, const float *x, Weights weights, int row, int rows, int first, int)
        : g(g), weights(weights) {
        const int quad = threadIdx.x % (ROWS / 4) * 4, c = threadIdx.x / (ROWS / 4);
        const Position at = position(min(row + quad, rows - 4), g.output);
        from = x + at.n * g.x[0] + (first * DEPTH + c) * g.x[1] + at.d * g.x[2] + at.h * g.x[3] + at.w * g.x[4];
        left = g.inputs - first * DEPTH - c;
        to = c * ROW_PITCH + quad;
    }
    DEVICE void copy(float *a, float *b) {
        weights.copy(b);
#pragma unroll
        for (int k = 0; k < DEPTH; k += PASS, from += PASS * g.x[1])
            copy_async<16>(a + to + k * ROW_PITCH, from, k < left);
        left -= DEPTH;
    }
};

// g reads: x, its sizes, the output's, the taps. `packed` are the weights, `parts` the partial sums of r.splits > 1.
KERNEL(THREADS, BLOCKS) im2col_forward(const __grid_constant__ Conv g, const __grid_constant__ Result r,
                                       const float *__restrict__ x, const float *__restrict__ packed,
                                       const float *__restrict__ bias, const float *__restrict__ residual,
                                       float *__restrict__ y, float *__restrict__ parts) {
    SHARED_MEMORY(memory);
    const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
    const int steps = GATHER == FEW ? ceil_div(taps * g.inputs, DEPTH) : taps * ceil_div(g.inputs, DEPTH);
    const int down = ceil_div(r.rows, ROWS), across = ceil_div(r.columns, COLUMNS);
    int item = blockIdx.x;
    const int column = item % across * COLUMNS;
    item /= across;
    const int row = item % down * ROWS;
    item /= down;
    const int group = item % r.groups, split = item / r.groups;
    const int first = (int)((long long)steps * split / r.splits);
    const int count = (int)((long long)steps * (split + 1) / r.splits) - first;

    Sums sums = {};
    if (count) {
        const Weights weights(packed, r.columns, (long long)group * steps + first, column);
        Source<GATHER> source(g, x + (long long)group * g.inputs * g.x[1], weights, row, r.rows, first, count);
        multiply(source, count, (float *)memory, sums);
    }
    finish_tile(r, sums, bias, residual, y, parts, row, column, group, split, (float *)memory);
}
