// Gradient of a convolution's weights as an implicit matrix product over the output's positions.
//
//   dw[k, c, tap] = sum over n, p  x[n, c, source(p * stride + tap * dilation - padding)] * dy[n, k, p]
//
//   rows: (tap, c) of a group, channels fastest     columns: output channels k     depth: positions p of all images
//
//                        dy             The reduction is as long as the result is small: blocks split the positions
//                      +--------+       among them, write partial sums, and add_parts (gemm_passes.cu) adds them in
//          positions   |  tile  |       order.
//                      +--------+
//      +-----------+   +--------+       A tile's rows reach over a few taps, its slots. For each step, 16 positions, the
//      |   tile    |   |  dw    |       block keeps in shared memory where every slot reads at each of them, and where dy
//      +-----------+   +--------+       lies: a thread an entry, written while the step before is multiplied. Copying
//        im2col(x), transposed          threads add the channel to what they find there.
//
//                     16 positions: address, null where there is padding or no such position
//            slot 0   | . . . . . . . . |       rows:  tap 3, c = 0 ... 63
//            slot 1   | . . . . . . . . |              tap 4, c = 0 ... 63
//            dy       | . . . . . . . . |
//
// GATHER: POSITIONS have lanes along 8 positions of 4 channels, 4 bytes each, for planes of channels-first; CHANNELS
// have lanes along channels, WIDTH (1 or 4) of them each, where channels lie side by side in x and dy.
//
// Memory: x is read (columns / tile) times taps, dy (rows / tile) times, from the caches but for the first. It loses where
// the group has few channels: a tile is then mostly padding (direct, depthwise).
#include "conv.cuh"
#include "gemm.cuh"

enum Gather { POSITIONS, CHANNELS };

struct Tap { int d, h, w; };  // dilated, less the padding

// Addresses of a step, written one step ahead.
struct Addresses {
    const Conv &g;
    const float *x, *dy;
    const float **table;  // [2][slots + 1][DEPTH]
    const Tap *taps;
    int slots, half, left;  // positions from the thread's own on
    Position at;

    DEVICE int entries() const { return (slots + 1) * DEPTH; }

    DEVICE Addresses(const Conv &g, const float *x, const float *dy, int first_tap, int slots, int first, void *memory)
        : g(g), x(x), dy(dy), table((const float **)memory), slots(slots), half(0) {
        Tap *staged = (Tap *)(table + 2 * entries());
        for (int i = threadIdx.x; i < slots; i += THREADS) {
            int tap = first_tap + i;
            const int s = tap % g.kernel[2];
            tap /= g.kernel[2];
            const int r = tap % g.kernel[1], d = tap / g.kernel[1];
            staged[i] = {d < g.kernel[0] ? d * g.dilation[0] - g.padding[0] : 1 << 30,  // a slot beyond the last tap
                         r * g.dilation[1] - g.padding[1], s * g.dilation[2] - g.padding[2]};
        }
        taps = staged;
        const int row = first * DEPTH + threadIdx.x % DEPTH;
        at = position(row, g.output);
        left = g.batch * g.output[0] * g.output[1] * g.output[2] - row;
        __syncthreads();
        write();
    }
    // The addresses of one step; each thread goes on to its position of the next one.
    DEVICE void write() {
        for (int e = threadIdx.x; e < entries(); e += THREADS) {
            const float *from = nullptr;
            if (left > 0) {
                const int slot = e / DEPTH;
                if (slot == slots) {
                    from = dy + at.n * g.y[0] + at.d * g.y[2] + at.h * g.y[3] + at.w * g.y[4];
                } else if (taps[slot].d < 1 << 30) {
                    const Tap tap = taps[slot];
                    const int d = source(at.d * g.stride[0] + tap.d, g.input[0], g.mode);
                    const int h = source(at.h * g.stride[1] + tap.h, g.input[1], g.mode);
                    const int w = source(at.w * g.stride[2] + tap.w, g.input[2], g.mode);
                    if ((d | h | w) >= 0) from = x + at.n * g.x[0] + d * g.x[2] + h * g.x[3] + w * g.x[4];
                }
            }
            table[half + e] = from;
        }
        if (threadIdx.x >= entries()) return;
        left -= DEPTH;
        at.w += DEPTH;
        while (at.w >= g.output[2]) {
            at.w -= g.output[2];
            if (++at.h < g.output[1]) continue;
            at.h = 0;
            if (++at.d == g.output[0]) at.d = 0, at.n++;
        }
    }
    DEVICE void next() {
        half = entries() - half;
        write();
    }
    DEVICE const float *find(int entry) const { return table[half + entry]; }
    // Aligned by its offset: through an integer the address would lose that it is shared memory's, and loads be generic.
    DEVICE void *behind() const {
        const int bytes = 2 * entries() * (int)sizeof(float *) + slots * (int)sizeof(Tap);
        return (unsigned char *)table + (bytes + 15 & ~15);
    }
};

template <int GATHERED> struct Source;

// What a row adds to the addresses: its slot's entries, its channel's elements.
struct Row {
    long long channel;
    int entry, unused;
};

template <> struct Source<POSITIONS> {
    static constexpr int LANES = 8, PASS = THREADS / LANES, HALVES = DEPTH / LANES;  // PASS rows or columns at a time
    const Conv &g;
    Addresses addresses;
    const Row *rows;
    long long column;  // of dy, in elements
    int columns;       // from the thread's first one on

    DEVICE Source(const Conv &g, Addresses addresses, int row, int first_tap, int first_column)
        : g(g), addresses(addresses) {
        Row *staged = (Row *)addresses.behind();
        if (threadIdx.x < ROWS) {
            const int slot = (row + (int)threadIdx.x) / g.inputs, c = row + threadIdx.x - slot * g.inputs;
            staged[threadIdx.x] = {c * g.x[1], min(slot - first_tap, addresses.slots - 1) * DEPTH, 0};
        }
        rows = staged + threadIdx.x / LANES;
        column = (first_column + (int)threadIdx.x / LANES) * g.y[1];
        columns = g.outputs - first_column - threadIdx.x / LANES;
    }
    DEVICE void copy(float *a, float *b) {
        const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
        a += lane * ROW_PITCH + first, b += lane * COLUMN_PITCH + first;
#pragma unroll
        for (int i = 0; i < ROWS; i += 2 * PASS) {
            const float *from[2][HALVES];  // read before they are copied: the compiler delays a copy that follows a load
            long long channel[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const Row row = rows[i + j * PASS];
                channel[j] = row.channel;
#pragma unroll
                for (int p = 0; p < HALVES; p++) from[j][p] = addresses.find(row.entry + lane + p * LANES);
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int p = 0; p < HALVES; p++)
                    copy_async<4>(a + p * LANES * ROW_PITCH + i + j * PASS, from[j][p] + channel[j], from[j][p]);
        }
#pragma unroll
        for (int p = 0; p < DEPTH; p += LANES) {
            const float *dy = addresses.find(addresses.slots * DEPTH + lane + p), *from = dy + column;
#pragma unroll
            for (int i = 0; i < COLUMNS; i += PASS, from += PASS * g.y[1])
                copy_async<4>(b + p * COLUMN_PITCH + i, from, dy && i < columns);
        }
        addresses.next();
    }
};

template <> struct Source<CHANNELS> {
    static constexpr int A_LANES = ROWS / WIDTH, B_LANES = COLUMNS / WIDTH;
    static constexpr int A_PASS = THREADS / A_LANES, B_PASS = THREADS / B_LANES;  // positions a pass of the block
    static_assert(A_PASS <= DEPTH && B_PASS <= DEPTH, "a thread copies at least once");
    Addresses addresses;
    int slot, c, column;

    DEVICE Source(const Conv &g, Addresses addresses, int row, int first_tap, int first_column) : addresses(addresses) {
        row += threadIdx.x % A_LANES * WIDTH;
        slot = min(row / g.inputs - first_tap, addresses.slots - 1), c = row % g.inputs;
        column = min(first_column + (int)threadIdx.x % B_LANES * WIDTH, g.outputs - WIDTH);
    }
    DEVICE void copy(float *a, float *b) {
        const int p = threadIdx.x / A_LANES, q = threadIdx.x / B_LANES;
        a += p * ROW_PITCH + threadIdx.x % A_LANES * WIDTH, b += q * COLUMN_PITCH + threadIdx.x % B_LANES * WIDTH;
        const float *x[DEPTH / A_PASS], *dy[DEPTH / B_PASS];  // all read before the first copy
#pragma unroll
        for (int i = 0; i < DEPTH / A_PASS; i++) x[i] = addresses.find(slot * DEPTH + p + i * A_PASS);
#pragma unroll
        for (int i = 0; i < DEPTH / B_PASS; i++) dy[i] = addresses.find(addresses.slots * DEPTH + q + i * B_PASS);
#pragma unroll
        for (int i = 0; i < DEPTH / A_PASS; i++) copy_async<4 * WIDTH>(a + i * A_PASS * ROW_PITCH, x[i] + c, x[i]);
#pragma unroll
        for (int i = 0; i < DEPTH / B_PASS; i++)
            copy_async<4 * WIDTH>(b + i * B_PASS * COLUMN_PITCH, dy[i] + column, dy[i]);
        addresses.next();
    }
};

// g reads: x and its sizes, dy (as y) and its sizes, the taps. `slots` is how many taps a tile's rows reach at most.
KERNEL(THREADS, BLOCKS) im2col_grad_weight(const __grid_constant__ Conv g, const __grid_constant__ Result r,
                                           const float *__restrict__ x, const float *__restrict__ dy,
                                           float *__restrict__ dw, float *__restrict__ parts, int slots) {
    SHARED_MEMORY(memory);
    const int steps = ceil_div(g.batch * g.output[0] * g.output[1] * g.output[2], DEPTH);
    const int down = ceil_div(r.rows, ROWS), across = ceil_div(r.columns, COLUMNS);
    int item = blockIdx.x;
    const int column = item % across * COLUMNS;
    item /= across;
    const int row = item % down * ROWS;
    item /= down;
    const int group = item % r.groups, split = item / r.groups;
    const int first = (int)((long long)steps * split / r.splits);
    const int count = (int)((long long)steps * (split + 1) / r.splits) - first;

    const int first_tap = row / g.inputs;
    const Addresses addresses(g, x + (long long)group * g.inputs * g.x[1], dy + (long long)group * g.outputs * g.y[1],
                              first_tap, slots, first, memory + STAGES * STAGE_FLOATS * sizeof(float));
    Source<GATHER> source(g, addresses, row, first_tap, column);
    Sums sums = {};
    multiply(source, count, (float *)memory, sums);
    finish_tile(r, sums, nullptr, nullptr, dw, parts, row, column, group, split, (float *)memory);
}
