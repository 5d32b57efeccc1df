// The matrix product behind convolutions, in FFMA: the tile of a block, its pipeline, its epilogue.
//
//   sums[m, n] = sum over k  a[k, m] * b[k, n]           m: ROWS of the tile, n: COLUMNS, k: DEPTH a step
//
// A file that includes this brings a Source, which copies the operands of one step after the other into shared memory;
// what m, n and k mean is its affair. The launcher defines TILE_ROWS, TILE_COLUMNS, THREAD_COLUMNS and BLOCKS.
//
// Register tile. A thread has 8 rows and THREAD_COLUMNS (8 or 4) columns, in quads that lie 32 rows and 16 columns
// apart, so that a warp reads 128 consecutive bytes of a row of `a` and 64 of `b`, each 16 bytes a lane:
//
//                       16 columns        16 columns                       lane / 8 -> column quad
//                   +--+--+--+--+    +--+--+--+--+            +----+----+----+----+
//      32 rows      |  |  |  |  |    |  |  |  |  |    lane %  |  0 |  8 | 16 | 24 |
//                   +--+--+--+--+    +--+--+--+--+      8     |  1 |  9 | 17 | 25 |
//      32 rows      |  |  |  |  |    |  |  |  |  |     row    | .. | .. | .. | .. |
//                   +--+--+--+--+    +--+--+--+--+    quad    |  7 | 15 | 23 | 31 |
//                     a warp: 64 x 32                         +----+----+----+----+
//
// A row m or column n of shared memory has 4 floats more than the tile: a warp that copies 8 steps of k of 4 rows, 4
// bytes a lane, then hits every bank once.
//
//   k      |  LDS k + 1  |  64 FFMA k  |       the fragments of k + 1 are loaded while those of k are multiplied
//   step   |  copies of step + 2, 15 k's, wait for step + 1, barrier, last k  |         STAGES = 3 buffers
//
// Per k a thread issues 4 128-bit loads and 64 FFMA (8 x 8), or 3 and 32 (8 x 4): the issue slots that loads, copies
// and addresses take are what it loses against the peak. Traffic: a tile of 128 x 128 does 32 operations for a byte
// that comes from the L2 cache.
#pragma once
#include "ptx.cuh"
#include "result.cuh"

constexpr int ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS, THREAD_ROWS = 8, DEPTH = 16, STAGES = 3;
constexpr int THREADS = ROWS / THREAD_ROWS * (COLUMNS / THREAD_COLUMNS);
constexpr int ROW_PITCH = ROWS + 4, COLUMN_PITCH = COLUMNS + 4;
constexpr int A_FLOATS = DEPTH * ROW_PITCH, STAGE_FLOATS = A_FLOATS + DEPTH * COLUMN_PITCH;
constexpr int WARPS_ACROSS = COLUMNS / (4 * THREAD_COLUMNS);
static_assert(ROWS % 64 == 0 && COLUMNS % (4 * THREAD_COLUMNS) == 0 && ROWS <= THREADS, "no such tile");

using Sums = float[THREAD_ROWS][THREAD_COLUMNS];

// A thread's first row and column of the tile; the i-th is i / 4 * 32 + i % 4 rows, i / 4 * 16 + i % 4 columns further.
DEVICE int thread_row() { return threadIdx.x / 32 / WARPS_ACROSS * 64 + threadIdx.x % 8 * 4; }
DEVICE int thread_column() { return threadIdx.x / 32 % WARPS_ACROSS * 4 * THREAD_COLUMNS + threadIdx.x % 32 / 8 * 4; }
DEVICE int row_of(int i) { return i / 4 * 32 + i % 4; }
DEVICE int column_of(int j) { return j / 4 * 16 + j % 4; }

struct Fragments { float a[THREAD_ROWS], b[THREAD_COLUMNS]; };

DEVICE void load(Fragments &f, const float *a, const float *b) {
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; i += 4) *(float4 *)(f.a + i) = *(const float4 *)(a + row_of(i));
#pragma unroll
    for (int j = 0; j < THREAD_COLUMNS; j += 4) *(float4 *)(f.b + j) = *(const float4 *)(b + column_of(j));
}

// Shared memory behind the stages, for the sources. Asked for where it is used: an address kept would cost a register.
template <class T> DEVICE T *behind_stages() {
    SHARED_MEMORY(memory);
    return (T *)(memory + STAGES * STAGE_FLOATS * sizeof(float));
}

// From a buffer to the next one, in floats.
DEVICE int to_next(int &buffer) {
    const bool last = buffer == STAGES - 1;
    buffer = last ? 0 : buffer + 1;
    return last ? -(STAGES - 1) * STAGE_FLOATS : STAGE_FLOATS;
}

// The product of `steps` steps. source.copy(a, b) issues the copies of its next step; between two of them there is a
// barrier, so that a source may prepare the next one in shared memory of its own.
template <class Source> DEVICE void multiply(Source &source, int steps, float *stages, Sums sums) {
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        __syncthreads();
        if (s < steps) source.copy(stages + s * STAGE_FLOATS, stages + s * STAGE_FLOATS + A_FLOATS);
        commit();
    }
    wait<STAGES - 2>();
    __syncthreads();

    int filled = STAGES - 1, read = 0;  // buffers
    float *fill = stages + (STAGES - 1) * STAGE_FLOATS;
    const float *a = stages + thread_row(), *b = stages + A_FLOATS + thread_column();
    Fragments f[2];
    load(f[0], a, b);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            if (k == 0) {  // into the buffer of the step before, which the last barrier says has been read
                if (step + STAGES - 1 < steps) source.copy(fill, fill + A_FLOATS);
                commit();
                fill += to_next(filled);
            }
            if (k == DEPTH - 1) {  // the next step's operands have to be there, in every thread's view
                wait<STAGES - 2>();
                __syncthreads();
                const int move = to_next(read);
                a += move, b += move;
            }
            const int next = (k + 1) % DEPTH;
            load(f[(k + 1) & 1], a + next * ROW_PITCH, b + next * COLUMN_PITCH);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; j++)
                    sums[i][j] = multiply_add(f[k & 1].a[i], f[k & 1].b[j], sums[i][j]);
        }
    }
}

// Partial sums instead of the result; `row` and `column` are the thread's own.
DEVICE void write_part(const Result &r, const Sums sums, float *part, int row, int column) {
    const int pitch = part_pitch(r);
    if (r.across == COLUMN_QUADS) {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j += 4)
                if (row + row_of(i) < r.rows && column + column_of(j) < pitch)
                    *(float4 *)(part + (long long)pitch * (row + row_of(i)) + column + column_of(j)) =
                        make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
    } else {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i += 4)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++)
                if (row + row_of(i) < pitch && column + column_of(j) < r.columns)
                    *(float4 *)(part + (long long)pitch * (column + column_of(j)) + row + row_of(i)) =
                        make_float4(sums[i][j], sums[i + 1][j], sums[i + 2][j], sums[i + 3][j]);
    }
}

// Calls visit(i, j, offset in the result, offset in the residual) for each of the thread's sums inside the result, or
// for the first one of each quad. `places` are the offsets of its rows, `row` and `column` the thread's own.
template <int ACROSS, class Visit>
DEVICE void each(const Result &r, const Place *places, int row, int column, Visit visit) {
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; i += ACROSS == ROW_QUADS ? 4 : 1) {
        if (row + row_of(i) >= r.rows) continue;
        const Place to = places[row_of(i)];
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j += ACROSS == COLUMN_QUADS ? 4 : 1) {
            const int n = column + column_of(j);
            if (n < r.columns) visit(i, j, to.at + n * r.column, to.other + n * r.residual_column);
        }
    }
}

template <int ACROSS>
DEVICE void add_residual(const Result &r, const Place *places, Sums sums, const float *residual, int row, int column) {
    each<ACROSS>(r, places, row, column, [&](int i, int j, long long, long long other) {
        if constexpr (ACROSS == NOTHING) {
            sums[i][j] += residual[other];
        } else {
            constexpr int DOWN = ACROSS == ROW_QUADS, RIGHT = 1 - DOWN;
            const float4 v = *(const float4 *)(residual + other);
            sums[i][j] += v.x, sums[i + DOWN][j + RIGHT] += v.y;
            sums[i + 2 * DOWN][j + 2 * RIGHT] += v.z, sums[i + 3 * DOWN][j + 3 * RIGHT] += v.w;
        }
    });
}

template <int ACROSS>
DEVICE void write(const Result &r, const Place *places, const Sums sums, float *y, int row, int column) {
    each<ACROSS>(r, places, row, column, [&](int i, int j, long long at, long long) {
        if constexpr (ACROSS == NOTHING) {
            y[at] = sums[i][j];
        } else {
            constexpr int DOWN = ACROSS == ROW_QUADS, RIGHT = 1 - DOWN;
            *(float4 *)(y + at) = make_float4(sums[i][j], sums[i + DOWN][j + RIGHT], sums[i + 2 * DOWN][j + 2 * RIGHT],
                                              sums[i + 3 * DOWN][j + 3 * RIGHT]);
        }
    });
}

// The activation of every sum. Each function is in the code once for a row of sums, which moves past it: unrolled 64
// times they would be twenty times the rest of the kernel, and sums cannot be indexed at run time.
DEVICE void activate(Sums sums, int kind) {
    if (kind == RELU) {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++) sums[i][j] = activate(sums[i][j], RELU);
    } else if (kind != IDENTITY) {
#pragma unroll 1
        for (int turn = 0; turn < THREAD_ROWS; turn++) {
            float first[THREAD_COLUMNS];
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++) first[j] = sums[0][j];
#pragma unroll 1
            for (int turned = 0; turned < THREAD_COLUMNS; turned++) {
                const float done = activate(first[0], kind);
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS - 1; j++) first[j] = first[j + 1];
                first[THREAD_COLUMNS - 1] = done;
            }
#pragma unroll
            for (int i = 0; i < THREAD_ROWS - 1; i++)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; j++) sums[i][j] = sums[i + 1][j];
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++) sums[THREAD_ROWS - 1][j] = first[j];
        }
    }
}

// A tile's end: partial sums, or result = activation(sums + bias + residual). `memory` is what the tile was summed with.
DEVICE void finish_tile(const Result &r, Sums sums, const float *bias, const float *residual, float *y, float *parts,
                        int first_row, int first_column, int group, int split, float *memory) {
    const int row = first_row + thread_row(), column = first_column + thread_column();
    if (r.splits > 1) {
        write_part(r, sums, parts + ((long long)split * r.groups + group) * part_size(r), row, column);
        return;
    }
    __syncthreads();  // the last fragments have been read
    Place *places = (Place *)memory;
    if (threadIdx.x < ROWS) places[threadIdx.x] = place(r, first_row + threadIdx.x);
    __syncthreads();
    places += thread_row();
    const int channel = group * r.columns;
    y += channel * r.column;
    if (bias) {
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) {
            const int n = column + column_of(j);
            const float b = n < r.columns ? bias[channel + n] : 0.f;
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; i++) sums[i][j] += b;
        }
    }
    if (residual) {
        residual += channel * r.residual_column;
        if (r.across == ROW_QUADS) add_residual<ROW_QUADS>(r, places, sums, residual, row, column);
        else if (r.across == COLUMN_QUADS) add_residual<COLUMN_QUADS>(r, places, sums, residual, row, column);
        else add_residual<NOTHING>(r, places, sums, residual, row, column);
    }
    activate(sums, r.activation);
    if (r.across == ROW_QUADS) write<ROW_QUADS>(r, places, sums, y, row, column);
    else if (r.across == COLUMN_QUADS) write<COLUMN_QUADS>(r, places, sums, y, row, column);
    else write<NOTHING>(r, places, sums, y, row, column);
}
