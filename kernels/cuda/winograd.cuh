// What the Winograd kernels share: the transforms, the tiles of an image, the transformed weights.
//
//   Y = A' [ sum over c of (G w[k, c] G') * (B' x[c] B) ] A        elementwise product; 3x3 taps, stride 1
//
// kernels/winograd_matrices.py derives the matrices; the launcher defines them, exact:
//
//   OUTPUTS         m, the outputs of a tile along an axis: 2 or 4
//   INPUT_MATRIX    B', SIZE x SIZE, SIZE = m + 2
//   OUTPUT_MATRIX   A', m x SIZE
//   WEIGHT_MATRIX   G, SIZE x 3
//
// Points of evaluation come in pairs p, -p, in rows 1 and 2, 3 and 4 of B' and G and columns of A'. Two of a pair differ
// in the sign of the odd powers, so the even and the odd part are computed once and added and subtracted: that is
// written out below, because addition in floating point lets no compiler find it. Zeros, ones and constants are left to
// the compiler, which sees every coefficient once the loops are unrolled. Operations for a row: 4 for B' of F(2, 3),
// 16 of F(4, 3) that were 22.
#pragma once
#include "conv.cuh"
#include "epilogue.cuh"

constexpr int SIZE = OUTPUTS + 2, PRODUCTS = SIZE * SIZE, TAPS = 3;

// Adds coefficient * v; the first term of a sum that is still `empty` is not added to 0.
DEVICE void add_term(float &sum, bool &empty, float coefficient, float v) {
    if (coefficient == 0.f) return;
    sum = empty ? coefficient * v : multiply_add(coefficient, v, sum);
    empty = false;
}

// to[i] = sum over l of matrix[i][l] * from[l], for B' and G.
template <int COUNT> DEVICE void evaluate(const float (&matrix)[SIZE][COUNT], const float from[COUNT], float to[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
        const bool paired = i > 0 && i < SIZE - 1;
        if (paired && i % 2 == 0) continue;  // with the one before
        float even = 0.f, odd = 0.f;
        bool no_even = true, no_odd = true;
#pragma unroll
        for (int l = 0; l < COUNT; l++)
            if (l % 2) add_term(odd, no_odd, matrix[i][l], from[l]);
            else add_term(even, no_even, matrix[i][l], from[l]);
        to[i] = no_odd ? even : no_even ? odd : even + odd;
        if (paired) to[i + 1] = even - odd;
    }
}

DEVICE void transform_input(const float from[SIZE], float to[SIZE]) {
    constexpr float matrix[SIZE][SIZE] = INPUT_MATRIX;
    evaluate<SIZE>(matrix, from, to);
}

DEVICE void transform_weights(const float from[TAPS], float to[SIZE]) {
    constexpr float matrix[SIZE][TAPS] = WEIGHT_MATRIX;
    evaluate<TAPS>(matrix, from, to);
}

DEVICE void transform_output(const float from[SIZE], float to[OUTPUTS]) {
    constexpr float matrix[OUTPUTS][SIZE] = OUTPUT_MATRIX;
    float even[SIZE], odd[SIZE];  // of the pair that begins at j
#pragma unroll
    for (int j = 1; j < SIZE - 1; j += 2) even[j] = from[j] + from[j + 1], odd[j] = from[j] - from[j + 1];
#pragma unroll
    for (int i = 0; i < OUTPUTS; i++) {
        bool empty = true;
        add_term(to[i], empty, matrix[i][0], from[0]);
#pragma unroll
        for (int j = 1; j < SIZE - 1; j += 2) add_term(to[i], empty, matrix[i][j], i % 2 ? odd[j] : even[j]);
        add_term(to[i], empty, matrix[i][SIZE - 1], from[SIZE - 1]);
    }
}

// Tiles of all images are numbered image by image, row by row. A tile's first output row and column:
struct Tile { int n, row, column; };

DEVICE int tile_columns(const Conv &g) { return ceil_div(g.output[2], OUTPUTS); }
DEVICE Index tile_count(const Conv &g) { return (Index)g.batch * ceil_div(g.output[1], OUTPUTS) * tile_columns(g); }

DEVICE Tile tile_at(const Conv &g, Index flat) {
    const int rows = ceil_div(g.output[1], OUTPUTS), columns = tile_columns(g);
    const Index row = flat / columns;
    return {(int)(row / rows), (int)(row % rows) * OUTPUTS, (int)(flat - row * columns) * OUTPUTS};
}

// Offsets of COUNT successive positions of a padded axis; bit i of the result says whether position i shows an element.
template <int COUNT>
DEVICE unsigned positions(int first, int size, int mode, Index stride, Index offsets[COUNT]) {
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int at = source(first + i, size, mode);
        offsets[i] = stride * at;
        inside |= (unsigned)(at >= 0) << i;
    }
    return inside;
}

// Rows of a tile's outputs, of which `count` lie inside. `vector` of them (4, 2 or 1) lie side by side and aligned.
DEVICE void add_row(float row[OUTPUTS], const float *from, int count, Index stride, int vector) {
    if (vector >= 2 && count >= OUTPUTS) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i += 2) {
            const float2 v = *(const float2 *)(from + i);
            row[i] += v.x, row[i + 1] += v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++)
            if (i < count) row[i] += from[stride * i];
    }
}

DEVICE void store_row(float *to, const float row[OUTPUTS], int count, Index stride, int vector) {
    if (OUTPUTS == 4 && vector == 4 && count >= 4) {
        *(float4 *)to = make_float4(row[0], row[1], row[OUTPUTS - 2], row[OUTPUTS - 1]);
    } else if (vector >= 2 && count >= OUTPUTS) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i += 2) *(float2 *)(to + i) = make_float2(row[i], row[i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++)
            if (i < count) to[stride * i] = row[i];
    }
}

// Products of a tile in one channel to its outputs: y = activation(A' M A + bias + residual). `channel` is of all groups.
DEVICE void write_tile(const Conv &g, const float products[SIZE][SIZE], const Tile &tile, int channel,
                       const float *__restrict__ bias, const float *__restrict__ residual, float *__restrict__ y,
                       int vector) {
    float half[OUTPUTS][SIZE], sums[OUTPUTS][OUTPUTS];
#pragma unroll
    for (int s = 0; s < SIZE; s++) {
        float column[SIZE], done[OUTPUTS];
#pragma unroll
        for (int r = 0; r < SIZE; r++) column[r] = products[r][s];
        transform_output(column, done);
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) half[i][s] = done[i];
    }
#pragma unroll
    for (int i = 0; i < OUTPUTS; i++) transform_output(half[i], sums[i]);

    const int rows = min(OUTPUTS, g.output[1] - tile.row), columns = min(OUTPUTS, g.output[2] - tile.column);
    if (bias) {
        const float b = bias[channel];
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++)
#pragma unroll
            for (int j = 0; j < OUTPUTS; j++) sums[i][j] += b;
    }
    if (residual) {
        const float *from = residual + (Index)g.residual[0] * tile.n + (Index)g.residual[1] * channel +
                            (Index)g.residual[3] * tile.row + (Index)g.residual[4] * tile.column;
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++)
            if (i < rows) add_row(sums[i], from + (Index)g.residual[3] * i, columns, (Index)g.residual[4], vector);
    }
    if (g.activation == RELU) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++)
#pragma unroll
            for (int j = 0; j < OUTPUTS; j++) sums[i][j] = activate(sums[i][j], RELU);
    } else if (g.activation != IDENTITY) {
        // Each function is in the code once: outputs move past it, as registers cannot be indexed at run time.
#pragma unroll 1
        for (int turn = 0; turn < OUTPUTS * OUTPUTS; turn++) {
            const float done = activate(sums[0][0], g.activation);
#pragma unroll
            for (int i = 0; i < OUTPUTS * OUTPUTS - 1; i++)
                sums[i / OUTPUTS][i % OUTPUTS] = sums[(i + 1) / OUTPUTS][(i + 1) % OUTPUTS];
            sums[OUTPUTS - 1][OUTPUTS - 1] = done;
        }
    }
    float *to = y + (Index)g.y[0] * tile.n + (Index)g.y[1] * channel + (Index)g.y[3] * tile.row +
                (Index)g.y[4] * tile.column;
#pragma unroll
    for (int i = 0; i < OUTPUTS; i++)
        if (i < rows) store_row(to + (Index)g.y[3] * i, sums[i], columns, (Index)g.y[4], vector);
}

// Where weights are, and where they go transformed. kernels/cuda/winograd.py declares the same struct (WEIGHTS).
struct Weights {
    int groups, outputs, inputs;           // channels of a group
    int padded_outputs, padded_inputs;     // transformed; the others are zeros
    int reserved;
    long long w_group, w_output, w_input;  // strides of w; taps may run backwards
    long long w_row, w_column;
    long long u_group, u_block, u_input, u_product;  // strides of u; a block is 64 output channels, side by side
};

constexpr int WEIGHT_THREADS = 256, WEIGHT_INPUTS = 8, WEIGHT_OUTPUTS = WEIGHT_THREADS / WEIGHT_INPUTS;

// u[group][k][c][product] = G w G'. A block transforms 32 output channels (lanes: stores are whole lines) of 8 input
// channels (warps: together they read whole lines of w).
KERNEL(WEIGHT_THREADS, 4) winograd_weights(const Weights g, const float *__restrict__ w, float *__restrict__ u) {
    const int blocks = g.padded_outputs / WEIGHT_OUTPUTS, parts = ceil_div(g.padded_inputs, WEIGHT_INPUTS);
    const int item = blockIdx.x;
    const int c = item % parts * WEIGHT_INPUTS + threadIdx.x / WEIGHT_OUTPUTS;
    const int k = item / parts % blocks * WEIGHT_OUTPUTS + threadIdx.x % WEIGHT_OUTPUTS;
    const int group = item / parts / blocks;
    if (c >= g.padded_inputs) return;
    const bool inside = c < g.inputs && k < g.outputs;
    const float *from = w + g.w_group * group + g.w_output * k + g.w_input * c;
    float half[TAPS][SIZE];  // [column][row of G w]
#pragma unroll
    for (int s = 0; s < TAPS; s++) {
        float column[TAPS];
#pragma unroll
        for (int r = 0; r < TAPS; r++) column[r] = inside ? from[g.w_row * r + g.w_column * s] : 0.f;
        transform_weights(column, half[s]);
    }
    float *to = u + g.u_group * group + g.u_block * (k / 64) + g.u_input * c + k % 64;
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
        float row[TAPS], done[SIZE];
#pragma unroll
        for (int s = 0; s < TAPS; s++) row[s] = half[s][i];
        transform_weights(row, done);
#pragma unroll
        for (int j = 0; j < SIZE; j++, to += g.u_product) *to = done[j];
    }
}
