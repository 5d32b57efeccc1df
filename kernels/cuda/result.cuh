// Where the sums of a matrix product go: the strides of the result, and the partial sums of a split reduction.
#pragma once
#include "epilogue.cuh"

// Where a product goes. Rows are positions of up to four axes, the last one fastest; columns have one stride. Strides
// count elements. kernels/cuda/gemm.py declares the same struct field by field (RESULT).
struct Result {
    int rows, columns;  // of a group
    int groups;
    int splits;         // parts of the reduction, each of which a block sums; more than one: `parts` are written
    int across;         // what lies side by side, by fours and aligned, in the result and the residual: Across
    int activation;
    int axes;
    int size[4];
    long long row[4];
    long long column;
    long long residual_row[4];
    long long residual_column;
};

enum Across { NOTHING, ROW_QUADS, COLUMN_QUADS };

// Offsets of a row in the result and in the residual.
struct Place { long long at, other; };

DEVICE Place place(const Result &r, int row) {
    Place to = {};
#pragma unroll 1
    for (int axis = r.axes - 1; axis > 0; axis--) {
        const int rest = row / r.size[axis], i = row - rest * r.size[axis];
        to.at += i * r.row[axis], to.other += i * r.residual_row[axis];
        row = rest;
    }
    to.at += row * r.row[0], to.other += row * r.residual_row[0];
    return to;
}

// Partial sums: [split][group][column][rows, padded to fours], or with columns fastest where the result has them so.
DEVICE int part_pitch(const Result &r) { return (r.across == COLUMN_QUADS ? r.columns : r.rows) + 3 & ~3; }
DEVICE long long part_size(const Result &r) {
    return (long long)part_pitch(r) * (r.across == COLUMN_QUADS ? r.rows : r.columns);
}
