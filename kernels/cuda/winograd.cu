// Winograd convolution F(4x4, 3x3) in three kernels: 36 products where direct convolution needs 144.
//
//   V[xi][c][t]  = (B' x[c] B)[xi]               of every tile t: 6x6 inputs, 4x4 outputs        here
//   M[xi][k][t]  = sum over c of U[xi][c][k] * V[xi][c][t]          36 matrix products           winograd_products.cu
//   y            = activation(A' M A + bias + residual)                                          here
//
//        x (6x6, tiles overlap by 2)        V                           M                   y (4x4)
//         +-----------+          36 of: +--------+             36 of: +--------+           +-------+
//         | o o o o . |          c      |  tile  |   * U[xi]   k      |  tile  |           |       |
//         | o o o o . |   -->           +--------+     -->            +--------+    -->    +-------+
//         +-----------+                    t (pitch: whole GEMM tiles)   t, or k fastest
//
// The launcher runs the three for one chunk of tiles after the other. A tile and channel are 64 bytes of x or y, 144 of V
// and of M: written to and read from memory those would cost more than the arithmetic saves for 64 channels, so V and M
// of a chunk fit in the L2 cache where that leaves enough blocks to fill the GPU. From 256 channels on the products take
// so long that it does not matter.
//
// Thread mapping. A thread has one tile of one channel, its 36 numbers in registers; all 36 loads are under way at once.
//   input, channels first    lanes: tiles. V as it lies: a warp stores whole lines. Rows of x in 16 bytes where aligned.
//   input, channels last     lanes: channels, of which x has whole lines; 8 tiles of 32 channels turn in shared memory,
//                            and V gets 32 bytes at a time.
//   output                   lanes: tiles for channels first, channels for channels last; M was written accordingly.
//
// Per tile and channel: 12 rows of 16 operations in, 36 * 2 * K multiplied, 10 rows out. It loses to F(2x2) with
// few channels (the traffic of V and M), where few tiles leave a GPU idle, and on images of which 4x4 tiles cover much
// more than there is: 7x7 costs as much as 8x8.
#include "winograd.cuh"

constexpr int TILES = 128, CHANNELS = 2;               // channels first: of a block; of a thread
constexpr int TURNED_TILES = 8, TURNED_CHANNELS = 32;  // channels last: of a block
constexpr int PITCH = TURNED_TILES + 1;                // no bank conflicts, stores or loads

// A tile's place in x.
struct Window {
    Index rows[SIZE], columns[SIZE], image;
    unsigned row_mask, column_mask;
    bool whole;  // its columns 1 to 4 lie side by side in x

    DEVICE Window(const Conv &g, Index flat, bool inside) {
        const Tile tile = tile_at(g, inside ? flat : 0);
        const int column = tile.column - g.padding[2];
        row_mask = positions<SIZE>(tile.row - g.padding[1], g.input[1], g.mode, (Index)g.x[3], rows);
        column_mask = inside ? positions<SIZE>(column, g.input[2], g.mode, (Index)g.x[4], columns) : 0;
        whole = inside && column >= -1 && column + 4 < g.input[2];
        image = (Index)g.x[0] * tile.n;
    }
    DEVICE float load(const float *x, int r, int s) const {
        return (row_mask >> r & column_mask >> s & 1) ? x[rows[r] + columns[s]] : 0.f;
    }
    // V of the channel whose image begins at x. `vector`: columns 1 to 4 of a whole tile are aligned to 16 bytes.
    template <class Store> DEVICE void transform(const float *x, bool vector, Store store) const {
        float d[SIZE][SIZE];
        if (vector && whole) {
#pragma unroll
            for (int r = 0; r < SIZE; r++) {
                const float4 middle = (row_mask >> r & 1) ? *(const float4 *)(x + rows[r] + columns[1])
                                                          : make_float4(0.f, 0.f, 0.f, 0.f);
                d[r][0] = load(x, r, 0), d[r][SIZE - 1] = load(x, r, SIZE - 1);
                d[r][1] = middle.x, d[r][2] = middle.y, d[r][3] = middle.z, d[r][4] = middle.w;
            }
        } else {
#pragma unroll
            for (int r = 0; r < SIZE; r++) {
                const float *row = x + opaque(rows[r]);  // else 36 addresses are kept in registers
#pragma unroll
                for (int s = 0; s < SIZE; s++) d[r][s] = row_mask >> r & column_mask >> s & 1 ? row[columns[s]] : 0.f;
            }
        }
#pragma unroll
        for (int s = 0; s < SIZE; s++) {
            float column[SIZE], done[SIZE];
#pragma unroll
            for (int r = 0; r < SIZE; r++) column[r] = d[r][s];
            transform_input(column, done);
#pragma unroll
            for (int r = 0; r < SIZE; r++) d[r][s] = done[r];
        }
#pragma unroll
        for (int r = 0; r < SIZE; r++) {
            float done[SIZE];
            transform_input(d[r], done);
#pragma unroll
            for (int s = 0; s < SIZE; s++) store(r * SIZE + s, done[s]);
        }
    }
};

// Tiles first ... first + count of all, to V[xi][channel of all groups][pitch]. Tiles from count on become zeros.
KERNEL(TILES, 4) winograd_input(const Conv g, const float *__restrict__ x, float *__restrict__ v, const Index first,
                                const int count, const int pitch, const int vector) {
    const int channels = g.groups * g.inputs, blocks = pitch / TILES;
    const long long product = (long long)channels * pitch;
    const int item = blockIdx.x, t = item % blocks * TILES + threadIdx.x;
    const Window window(g, first + t, t < count);
    const int end = min(channels, (item / blocks + 1) * CHANNELS);
#pragma unroll 1
    for (int c = item / blocks * CHANNELS; c < end; c++) {
        float *to = v + (long long)c * pitch + t;
        window.transform(x + window.image + (Index)g.x[1] * c, vector, [&](int, float value) {
            *to = value;
            to += product;
        });
    }
}

// The same where neighbouring lanes read neighbouring channels.
KERNEL(TURNED_TILES *TURNED_CHANNELS, 2)
winograd_input_last(const Conv g, const float *__restrict__ x, float *__restrict__ v, const Index first, const int count,
                    const int pitch) {
    SHARED_MEMORY(memory);
    float *turned = (float *)memory;  // [xi][channel][PITCH]
    const int channels = g.groups * g.inputs, parts = ceil_div(channels, TURNED_CHANNELS);
    const long long product = (long long)channels * pitch;
    const int t0 = blockIdx.x / parts * TURNED_TILES, c0 = blockIdx.x % parts * TURNED_CHANNELS;
    const int t = t0 + threadIdx.x / TURNED_CHANNELS, c = c0 + threadIdx.x % TURNED_CHANNELS;
    if (c < channels) {
        const Window window(g, first + t, t < count);
        float *to = turned + (c - c0) * PITCH + t - t0;
        window.transform(x + window.image + (Index)g.x[1] * c, false, [&](int xi, float value) {
            to[xi * TURNED_CHANNELS * PITCH] = value;
        });
    }
    __syncthreads();
    const int tile = threadIdx.x % TURNED_TILES, channel = threadIdx.x / TURNED_TILES;
    if (c0 + channel < channels) {
        float *to = v + (long long)(c0 + channel) * pitch + t0 + tile;
#pragma unroll
        for (int xi = 0; xi < PRODUCTS; xi++, to += product)
            *to = turned[(xi * TURNED_CHANNELS + channel) * PITCH + tile];
    }
}

// M to the outputs of tiles first ... first + count. `last`: M is [xi][group][t][k], else [xi][group][k][t]; `padded` k.
KERNEL(TILES, 4) winograd_output(const Conv g, const float *__restrict__ m, const float *__restrict__ bias,
                                 const float *__restrict__ residual, float *__restrict__ y, const Index first,
                                 const int count, const int pitch, const int padded, const int last, const int vector) {
    const int across = last ? ceil_div(g.outputs, 32) : g.outputs;  // blocks along the channels of a group
    const int tiles = last ? TILES / 32 : TILES, blocks = pitch / tiles;
    const long long matrix = (long long)padded * pitch;
    const int item = blockIdx.x;
    int t, k, group;
    if (last) {  // channels of a tile lie side by side
        k = item % across * 32 + threadIdx.x % 32;
        group = item / across % g.groups;
        t = item / across / g.groups * tiles + threadIdx.x / 32;
    } else {
        t = item % blocks * tiles + threadIdx.x;
        k = item / blocks % across;
        group = item / blocks / across;
    }
    if (t >= count || k >= g.outputs) return;
    const float *from = m + matrix * group + (last ? (long long)t * padded + k : (long long)k * pitch + t);
    float products[SIZE][SIZE];
#pragma unroll
    for (int xi = 0; xi < PRODUCTS; xi++, from += matrix * g.groups) products[xi / SIZE][xi % SIZE] = *from;
    write_tile(g, products, tile_at(g, first + t), group * g.outputs + k, bias, residual, y, vector);
}
