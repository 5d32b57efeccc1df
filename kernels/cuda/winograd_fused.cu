// Winograd convolution F(2x2, 3x3) in one kernel: 16 products where direct convolution needs 36, and only x, the
// transformed weights U and y pass through memory.
//
// A block has 32 tiles (4x4 inputs, 2x2 outputs) and 64 output channels of a group; the channels c come 8 at a time:
//
//      x: 32 tiles, 8 c        V[c][xi][tile]        M[xi][k][tile], in registers           y
//      +-------+  half a       +-----------+   U[c]  +-----+ a warp for each xi:         +-----+
//      | tile  |  tile a  -->  | xi 0..15  |  -----> | xi  | 64 k x 32 tiles, 8 x 8  --> | 2x2 |
//      +-------+  thread       +-----------+   [xi]  +-----+ a lane                      +-----+
//                 shared memory, 2 buffers      ^            through shared memory, 32 channels at a time
//                                               | cp.async, 32 KB that lie in memory as they do here
//
//      step   |  copies of U, loads of x for step + 1 |  8 c:  4 LDS.128, 64 FFMA each  |  transform, store V  | barrier
//
// Lanes as in gemm.cuh: lane % 8 has two quads of k, 32 apart, lane / 8 two quads of tiles, 16 apart. When a warp loads x
// its lanes are 32 tiles of one channel, or for channels-last 4 tiles of 8 channels; a channel of V is padded by 4 floats,
// so stores hit every bank once either way.
//
// A step has 2048 cycles of FFMA; of a thread's 700 instructions 512 are those, the others loads, addresses, the
// transform of half a tile, stores. 512 threads of 128 registers fill a multiprocessor. The weights are read once for 32
// tiles, from L2: 16 bytes a cycle. x is read and transformed again for every 64 output channels. It loses to F(4x4) from
// 64 or 128 channels on, whose 36 products for 16 outputs then outweigh the traffic of its three kernels; to others below
// 32 output channels, for which it computes 64; and the end, which nothing overlaps, is taken to cost two steps.
#include "ptx.cuh"
#include "winograd.cuh"

constexpr int THREADS = 512, TILES = 32, CHANNELS = 64, DEPTH = 8;
constexpr int V_CHANNEL = PRODUCTS * TILES + 4, V_FLOATS = DEPTH * V_CHANNEL;
constexpr int U_CHANNEL = PRODUCTS * CHANNELS, U_FLOATS = DEPTH * U_CHANNEL;
constexpr int STAGE = V_FLOATS + U_FLOATS;
constexpr int SIDE = 8, HALF = 3;  // a thread's channels and tiles; rows of x that half a transformed tile needs
constexpr int FIRST_QUAD = 4 * TILES + 4, FIRST_XI = 8 * FIRST_QUAD;  // M as [xi][quad of k][4][tile], padded
constexpr int LAST_XI = TILES * 32;                                   // M as [xi][tile][32 k]

constexpr bool LINEAR = ZERO_PADDED;  // what a tile reads of x lies at equal distances: nothing is mirrored or repeated

static_assert(OUTPUTS == 2 && THREADS == PRODUCTS * 32, "a warp for each product");

// Two rows of V from the three rows of x they need: `half` 0 rows 0 and 1 from rows 0 to 2, `half` 1 the others.
DEVICE void transform_half(const float x[HALF][SIZE], int half, float v[2][SIZE]) {
    constexpr float matrix[SIZE][SIZE] = INPUT_MATRIX;
    float rows[2][SIZE];
#pragma unroll
    for (int s = 0; s < SIZE; s++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool empty = true;
            float upper = 0.f, lower = 0.f;
#pragma unroll
            for (int l = 0; l < HALF; l++) add_term(upper, empty, matrix[i][l], x[l][s]);
            empty = true;
#pragma unroll
            for (int l = 0; l < HALF; l++) add_term(lower, empty, matrix[2 + i][1 + l], x[l][s]);
            rows[i][s] = half ? lower : upper;
        }
#pragma unroll
    for (int i = 0; i < 2; i++) transform_input(rows[i], v[i]);
}

// The tiles of a block, found once: [TILES] in shared memory. Those beyond the last have n = -1.
DEVICE void find_tiles(const Conv &g, Index first, Tile *tiles) {
    if (threadIdx.x >= TILES) return;
    const Index t = first + threadIdx.x;
    Tile tile = tile_at(g, t);
    if (t >= tile_count(g)) tile.n = -1;
    tiles[threadIdx.x] = tile;
}

// What a thread loads of x: three rows of a tile of one channel of each step.
struct Reader {
    const float *x;  // the tile's corner where LINEAR, else its image: offsets are in shared memory, [r][s][thread]
    Index *offsets;
    unsigned mask;
    int half, to;  // which half of V; where it begins there
    int left;      // channels from the thread's next one on

    DEVICE Reader(const Conv &g, const float *given, const Tile *tiles, int group, bool last, Index *memory) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % 8;
        const int c = last ? lane % 8 : part, t = last ? part * 4 + lane / 8 : lane;
        half = warp / 8;
        to = c * V_CHANNEL + half * 2 * SIZE * TILES + t;
        left = g.inputs - c;
        const Tile tile = tiles[t];
        const int row = tile.row - g.padding[1] + half, column = tile.column - g.padding[2];
        Index rows[HALF], columns[SIZE];
        const unsigned row_mask = positions<HALF>(row, g.input[1], LINEAR ? ZEROS : g.mode, (Index)g.x[3], rows);
        const unsigned column_mask = positions<SIZE>(column, g.input[2], LINEAR ? ZEROS : g.mode, (Index)g.x[4], columns);
        mask = 0;
#pragma unroll
        for (int r = 0; r < HALF; r++) mask |= (tile.n >= 0 && row_mask >> r & 1 ? column_mask : 0) << r * SIZE;
        x = given + (Index)g.x[0] * tile.n + (Index)g.x[1] * (group * g.inputs + c);
        offsets = memory + threadIdx.x;
        if (LINEAR) {
            x += (Index)g.x[3] * row + (Index)g.x[4] * column;
        } else {
#pragma unroll
            for (int i = 0; i < HALF * SIZE; i++) offsets[i * THREADS] = rows[i / SIZE] + columns[i % SIZE];
        }
    }
    DEVICE void load(const Conv &g, float d[HALF][SIZE]) {
        const unsigned there = left > 0 ? mask : 0;
        const float *row = x;
#pragma unroll
        for (int r = 0; r < HALF; r++, row += (Index)g.x[3]) {
            const float *at = row;  // steps, not products: those would be multiplied anew for each element
#pragma unroll
            for (int s = 0; s < SIZE; s++, at += (Index)g.x[4]) {
                const float *from = LINEAR ? at : x + offsets[(r * SIZE + s) * THREADS];
                d[r][s] = there >> (r * SIZE + s) & 1 ? *from : 0.f;
            }
        }
        x += (Index)g.x[1] * DEPTH, left -= DEPTH;
    }
    DEVICE void store(const float d[HALF][SIZE], float *v) const {
        float done[2][SIZE];
        transform_half(d, half, done);
#pragma unroll
        for (int i = 0; i < 2 * SIZE; i++) v[to + i * TILES] = done[i / SIZE][i % SIZE];
    }
};

// `to` and `from` are the thread's own places.
DEVICE void copy_weights(float *to, const float *from) {
#pragma unroll
    for (int i = 0; i < U_FLOATS; i += 4 * THREADS) copy_async<16>(to + i, from + i, true);
    commit();
}

// Add the products of one xi and DEPTH channels.
DEVICE void multiply(const float *u, const float *v, float sums[SIDE][SIDE]) {
#pragma unroll
    for (int c = 0; c < DEPTH; c++, u += U_CHANNEL, v += V_CHANNEL) {
        float a[SIDE], b[SIDE];
        *(float4 *)a = *(const float4 *)u, *(float4 *)(a + 4) = *(const float4 *)(u + 32);
        *(float4 *)b = *(const float4 *)v, *(float4 *)(b + 4) = *(const float4 *)(v + 16);
#pragma unroll
        for (int i = 0; i < SIDE; i++)
#pragma unroll
            for (int j = 0; j < SIDE; j++) sums[i][j] = multiply_add(a[i], b[j], sums[i][j]);
    }
}

// What a block computes: blocks of channels run fastest, so that they read a tile's x together.
struct Work {
    Index first;                // tile
    int group, channel, panel;  // channel of the group; place in u
    DEVICE Work(const Conv &g, Index item) {
        const int blocks = ceil_div(g.outputs, CHANNELS);
        const Index rest = item / blocks;
        const int block = (int)(item - rest * blocks);
        group = (int)(rest % g.groups), channel = block * CHANNELS, panel = group * blocks + block;
        first = rest / g.groups * TILES;
    }
};

// u[group][block of 64 k][c, padded to whole steps][xi][64].
KERNEL(THREADS, 1) winograd_fused(const Conv g, const float *__restrict__ x, const float *__restrict__ u,
                                  const float *__restrict__ bias, const float *__restrict__ residual,
                                  float *__restrict__ y, const int last, const int input_last,
                                  const int vector) {
    SHARED_MEMORY(memory);
    float *const stages = (float *)memory;
    Tile *const tiles = (Tile *)(stages + 2 * STAGE);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int k_quad = lane % 8 * 4, t_quad = lane / 8 * 4;
    const int steps = ceil_div(g.inputs, DEPTH);
    float sums[SIDE][SIDE] = {};
    {
        const Work work(g, blockIdx.x);
        const float *weights = u + (long long)work.panel * steps * U_FLOATS + threadIdx.x * 4;
        copy_weights(stages + V_FLOATS + threadIdx.x * 4, weights);
        find_tiles(g, work.first, tiles);
        __syncthreads();
        Reader reader(g, x, tiles, work.group, input_last, (Index *)(tiles + TILES));
        float d[HALF][SIZE];
        reader.load(g, d);
        reader.store(d, stages);
        wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            const float *const now = stages + step % 2 * STAGE;
            float *const next = stages + (step + 1) % 2 * STAGE;
            const bool more = step + 1 < steps;
            if (more) {
                weights += U_FLOATS;
                copy_weights(next + V_FLOATS + threadIdx.x * 4, weights);
                reader.load(g, d);
            }
            multiply(now + V_FLOATS + warp * CHANNELS + k_quad, now + warp * TILES + t_quad, sums);
            if (more) reader.store(d, next);
            wait<0>();
            __syncthreads();
        }
    }

    const Work work(g, opaque((int)blockIdx.x));  // again, rather than in registers all the while
#pragma unroll
    for (int part = 0; part < 2; part++) {  // 32 channels, those of one of a thread's quads
        if (part) __syncthreads();
        float *const mine = stages + warp * (last ? LAST_XI : FIRST_XI);
        if (last) {
#pragma unroll
            for (int j = 0; j < SIDE; j++) {
                float *to = mine + (t_quad + j / 4 * 16 + j % 4) * 32 + k_quad;
                *(float4 *)to = make_float4(sums[4 * part][j], sums[4 * part + 1][j], sums[4 * part + 2][j],
                                            sums[4 * part + 3][j]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *to = mine + lane % 8 * FIRST_QUAD + i * TILES + t_quad;
                const float *from = sums[4 * part + i];
                *(float4 *)to = make_float4(from[0], from[1], from[2], from[3]);
                *(float4 *)(to + 16) = make_float4(from[4], from[5], from[6], from[7]);
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int turn = warp; turn < 32; turn += THREADS / 32) {
            const int t = last ? turn : lane, k = last ? lane : turn;  // lanes along what lies side by side in y
            const float *from = stages + (last ? t * 32 + k : k / 4 * FIRST_QUAD + k % 4 * TILES + t);
            const int channel = work.channel + part * 32 + k;
            const Tile tile = tiles[t];
            if (channel >= g.outputs || tile.n < 0) continue;
            float products[SIZE][SIZE];
#pragma unroll
            for (int xi = 0; xi < PRODUCTS; xi++)
                products[xi / SIZE][xi % SIZE] = from[xi * (last ? LAST_XI : FIRST_XI)];
            write_tile(g, products, tile, work.group * g.outputs + channel, bias, residual, y, vector);
        }
    }
}
