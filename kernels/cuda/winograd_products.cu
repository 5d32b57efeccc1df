// The matrix products of Winograd convolution, one for each of the 36 products of a tile and each group:
//
//   M[t, k] = sum over c of V[c, t] * U[c, k]          rows of the tile: tiles t, columns: output channels k, depth: c
//
// Both operands lie as the pipeline of gemm.cuh wants them, [c][t] and [c][k], in whole vectors and padded to whole tiles
// of rows, so every copy is 16 bytes, aligned and without a bound but the last channels'. M is written with t fastest for
// channels-first results, with k fastest for channels-last ones, 16 bytes a lane either way.
//
//   blocks: columns fastest, then rows, then (product, group): those that run together share V and U in the L2 cache
//
// A tile of 128 x 128 does 32 operations for a byte from L2. It loses where a chunk has too few tiles or channels for
// the GPU's multiprocessors; the launcher then takes tiles of 64 columns.
#include "gemm.cuh"

// The next step's rows of V and U, 16 bytes a copy.
struct Panels {
    static constexpr int A_ROW = ROWS / 4, B_ROW = COLUMNS / 4;  // copies of a row
    static constexpr int A_PASS = THREADS / A_ROW, B_PASS = THREADS / B_ROW;
    static_assert(DEPTH % A_PASS == 0 && DEPTH % B_PASS == 0, "copies of a step divide among the threads");
    const float *v, *u;
    long long v_pitch, u_pitch;
    int v_left, u_left;  // channels from the thread's next rows on
    bool inside;         // the thread's columns of u

    DEVICE Panels(const float *v, const float *u, int v_pitch, int u_pitch, int channels, int columns)
        : v_pitch(v_pitch), u_pitch(u_pitch) {
        const int a_row = threadIdx.x / A_ROW, b_row = threadIdx.x / B_ROW;
        const int a_column = threadIdx.x % A_ROW * 4, b_column = threadIdx.x % B_ROW * 4;
        this->v = v + (long long)a_row * v_pitch + a_column;
        this->u = u + (long long)b_row * u_pitch + b_column;
        v_left = channels - a_row, u_left = channels - b_row;
        inside = b_column < columns;
    }
    DEVICE void copy(float *a, float *b) {
        a += threadIdx.x / A_ROW * ROW_PITCH + threadIdx.x % A_ROW * 4;
        b += threadIdx.x / B_ROW * COLUMN_PITCH + threadIdx.x % B_ROW * 4;
#pragma unroll
        for (int k = 0; k < DEPTH; k += A_PASS) copy_async<16>(a + k * ROW_PITCH, v + k * v_pitch, k < v_left);
#pragma unroll
        for (int k = 0; k < DEPTH; k += B_PASS)
            copy_async<16>(b + k * COLUMN_PITCH, u + k * u_pitch, k < u_left && inside);
        v += DEPTH * v_pitch, u += DEPTH * u_pitch;
        v_left -= DEPTH, u_left -= DEPTH;
    }
};

// V[batch][channels][pitch], U[batch][channels][padded], M[batch][padded][pitch] or `last` [batch][pitch][padded].
KERNEL(THREADS, BLOCKS) winograd_products(const float *__restrict__ v, const float *__restrict__ u,
                                          float *__restrict__ m, const int batch, const int channels, const int pitch,
                                          const int padded, const int last) {
    SHARED_MEMORY(memory);
    const int across = ceil_div(padded, COLUMNS), down = pitch / ROWS, steps = ceil_div(channels, DEPTH);
    const int item = blockIdx.x;
    const int column = item % across * COLUMNS, row = item / across % down * ROWS;
    const long long which = item / across / down;
    Panels panels(v + which * channels * pitch + row, u + which * channels * padded + column, pitch, padded, channels,
                  padded - column);
    Sums sums = {};
    multiply(panels, steps, (float *)memory, sums);

    float *to = m + which * padded * pitch;
    const int t = row + thread_row(), k = column + thread_column();
    if (last) {
        to += (long long)t * padded + k;
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j += 4)
                if (k + column_of(j) < padded)
                    *(float4 *)(to + (long long)row_of(i) * padded + column_of(j)) =
                        make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
    } else {
        to += (long long)k * pitch + t;
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++)
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; i += 4)
                if (k + column_of(j) < padded)
                    *(float4 *)(to + (long long)column_of(j) * pitch + row_of(i)) =
                        make_float4(sums[i][j], sums[i + 1][j], sums[i + 2][j], sums[i + 3][j]);
    }
}
