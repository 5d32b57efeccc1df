// Around the matrix products of im2col.cu and im2col_weight.cu: weights packed before, partial sums added after.
//
//   pack_weights   packed[group][row][k] = w[k, c, tap]      row = tap * padded inputs + c; zeros where there is no
//                  such channel c, row or k: a padded step of the product adds nothing
//   add_parts      y = activation(sum over splits of parts + bias + residual), splits in order: the same bits each time
//
// Both move each element once. pack_weights turns tiles of 32 x 32 through shared memory: weights are read along (c,
// tap), as they usually lie, and written along k, 128 bytes a warp. add_parts reads along what lies side by side in
// `parts`; a thread has one element and four splits of it under way.
#include "result.cuh"

struct Packing {
    int groups;
    int inputs, outputs;  // channels of a group
    int padded_inputs;    // rows of a tap
    int rows;             // of the packed matrix
    int pitch;            // of a row: outputs, padded to fours
    int kernel[3];
    long long group, output, input, tap[3];  // strides of w
};

constexpr int SIDE = 32, LINES = 8;

KERNEL(SIDE * LINES, 4) pack_weights(const __grid_constant__ Packing p, const float *__restrict__ w,
                                     float *__restrict__ packed) {
    SHARED_MEMORY(memory);
    float (*tile)[SIDE + 1] = (float (*)[SIDE + 1])memory;
    const int lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
    const int taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    const int across = ceil_div(p.pitch, SIDE), down = ceil_div(p.rows, SIDE);
    const int k0 = (int)(blockIdx.x % across) * SIDE, e0 = (int)(blockIdx.x / across % down) * SIDE;
    const int group = blockIdx.x / across / down;
    // e counts (c, tap), tap fastest; rows beyond the last one of unpadded channels are zeros.
    const int e = e0 + lane, tap = e % taps, c = e / taps;
    const int s = tap % p.kernel[2], r = tap / p.kernel[2] % p.kernel[1], d = tap / p.kernel[2] / p.kernel[1];
    const float *from = w + group * p.group + c * p.input + d * p.tap[0] + r * p.tap[1] + s * p.tap[2];
    for (int i = line; i < SIDE; i += LINES)
        tile[i][lane] = k0 + i < p.outputs && c < p.inputs ? from[(k0 + i) * p.output] : 0.f;
    __syncthreads();
    for (int i = line; i < SIDE; i += LINES) {
        const int e = e0 + i, c = e / taps;
        if (e >= p.rows || k0 + lane >= p.pitch) continue;
        const int row = c < p.padded_inputs ? e % taps * p.padded_inputs + c : e;
        packed[((long long)group * p.rows + row) * p.pitch + k0 + lane] = tile[lane][i];
    }
}

KERNEL(256, 4) add_parts(const __grid_constant__ Result r, const float *__restrict__ parts,
                         const float *__restrict__ bias, const float *__restrict__ residual, float *__restrict__ y) {
    const int element = blockIdx.x * 256 + threadIdx.x;
    if (element >= r.rows * r.columns * r.groups) return;
    const bool columns = r.across == COLUMN_QUADS;
    const int fast = columns ? r.columns : r.rows, slow = columns ? r.rows : r.columns;
    const int f = element % fast, s = element / fast % slow, group = element / fast / slow;
    const long long size = part_size(r), step = size * r.groups;
    const float *part = parts + group * size + (long long)s * part_pitch(r) + f;
    float sum = 0.f;
#pragma unroll 4
    for (int split = 0; split < r.splits; split++) sum += part[split * step];
    const int channel = group * r.columns + (columns ? f : s);
    const Place to = place(r, columns ? s : f);
    y[to.at + channel * r.column] =
        finish<float>(sum, bias, channel, residual, to.other + channel * r.residual_column, r.activation);
}
