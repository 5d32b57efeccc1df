// Pooling whose square window is known when compiling: 2x2 stride 2, and 3x3 with padding 1, stride 1 or 2. float32.
//
// The equations are those of pool.cu; arrays have no depth. WINDOW, STRIDE and PADDING are #defines.
//
// Forward, a thread ROWS x COLUMNS outputs. It walks down the input rows that they need, reduces each row along the
// window once, and gives the result to every output whose window holds the row (3x3, stride 1, 4 rows):
//
//      row -1  [. . .]   reduced along            -> output 0        6 rows loaded for 4 outputs: 1.5 loads of a row
//      row  0  [. . .]                            -> outputs 0, 1    an output, not 3; 4.5 loads and 6 operations an
//      row  1  [. . .]                            -> outputs 0, 1, 2 output, not 9 and 8
//       ...                                          ...
//      row  4  [. . .]                            -> output 3
//
//   _fours   COLUMNS = 4, channels first, rows of x on 16 bytes: three vectors a row of inputs, one a row of outputs
//   (none)   COLUMNS = 1, any strides: a warp reads and writes along w, or along the channels; its stores are whole
//            lines, which four neighbouring columns a thread would cut into quarters
//
// Gradients, a thread 4 rows of one column of dx, which it gathers: each dy (and index) of the windows that hold any of
// them is loaded once. Which window holds which row is known when compiling, because tiles start at multiples of STRIDE.
//
// Memory: every array once. Instructions counted in the machine code for sm_90a, of the 26 for each float moved that
// memory leaves time for: 3x3 stride 1, the largest without indices, 37 to 45 an output of 52; its gradient by indices
// 65 to 85 an element of 78, so that one may fall short of memory's speed; 2x2 has three times what it needs. No speed
// here has been measured on a GPU.
#include "pool.cuh"

constexpr int THREADS = 256, K = WINDOW, S = STRIDE, P = PADDING;
constexpr int ROWS = S == 1 ? 4 : 2, GRADIENT_ROWS = 4;

// What a window's taps reduce to: take(v, tap) along a row, then merge(row, position of its tap 0).
struct Largest {
    Sum value;
    DEVICE static Largest none(int, int) { return {-infinite()}; }
    DEVICE void take(Sum v, int) { value = larger(value, v); }
    DEVICE void merge(const Largest &row, int) { value = larger(value, row.value); }
};

struct Extreme {
    Sum value;
    int where;
    DEVICE static Extreme none(int row, int column) { return {-infinite(), row + column}; }
    DEVICE void take(Sum v, int tap) {
        if (beats(v, value)) value = v, where = tap;
    }
    DEVICE void merge(const Extreme &row, int at) {
        if (beats(row.value, value)) value = row.value, where = at + row.where;
    }
};

struct Total {
    Sum value;
    DEVICE static Total none(int, int) { return {Sum(0)}; }
    DEVICE void take(Sum v, int) { value += v; }
    DEVICE void merge(const Total &row, int) { value += row.value; }
};

// How many of K positions from first on are in 0 ... n - 1, or in the explicit padding too.
DEVICE int counted(int first, int n, int after, bool include) {
    return include ? min(K, n + after - first) : min(first + K, n) - max(first, 0);
}

// The divisor of a window of its own.
DEVICE Sum window_divisor(const Pool &g, int h, int w) {
    return (Sum)(counted(h * S - P, g.input[1], g.padding_after[1], g.include_padding) *
                 counted(w * S - P, g.input[2], g.padding_after[2], g.include_padding));
}

template <int COLUMNS> DEVICE void finish(const Pool &g, const Place &, int h, int w, bool whole, const Division &,
                                          const Largest (&best)[COLUMNS], Element *y, void *) {
    Element v[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) v[j] = narrow<Element>(best[j].value * (Sum)g.sign);
    store_row<COLUMNS>(y + (Index)g.y[3] * h, (Index)g.y[4], w, g.output[2], whole, v);
}

template <int COLUMNS> DEVICE void finish(const Pool &g, const Place &p, int h, int w, bool whole, const Division &,
                                          const Extreme (&best)[COLUMNS], Element *y, void *indices) {
    Element v[COLUMNS];
    int narrow_index[COLUMNS];
    long long wide_index[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        v[j] = narrow<Element>(best[j].value * (Sum)g.sign);
        wide_index[j] = narrow_index[j] = best[j].where;
    }
    store_row<COLUMNS>(y + (Index)g.y[3] * h, (Index)g.y[4], w, g.output[2], whole, v);
    const Index row = offset(g.indices, p.n, p.c, 0, h, 0), step = (Index)g.indices[4];
    if (g.index_bytes == 4)
        store_row<COLUMNS>((int *)indices + row, step, w, g.output[2], whole, narrow_index);
    else
        store_row<COLUMNS>((long long *)indices + row, step, w, g.output[2], whole, wide_index);
}

template <int COLUMNS> DEVICE void finish(const Pool &g, const Place &, int h, int w, bool whole, const Division &by,
                                          const Total (&sum)[COLUMNS], Element *y, void *) {
    Element v[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        v[j] = narrow<Element>(g.divisor != 0.0 ? by(sum[j].value) : sum[j].value / window_divisor(g, h, w + j));
    store_row<COLUMNS>(y + (Index)g.y[3] * h, (Index)g.y[4], w, g.output[2], whole, v);
}

#define EACH_ITEM(flat) \
    for (Index flat = (Index)blockIdx.x * THREADS + threadIdx.x; flat < (Index)t.items; flat += (Index)gridDim.x * THREADS)

// SIDE_BY_SIDE: a row's elements are.
template <class Result, int COLUMNS, bool SIDE_BY_SIDE>
DEVICE void windows_of(const Pool &g, const Tiles &t, const Element *x, Element *y, void *indices, bool whole) {
    const Division by((Sum)g.divisor);
    const Index step = SIDE_BY_SIDE ? 1 : (Index)g.x[4];
    constexpr int SPAN = (COLUMNS - 1) * S + K;
    const Sum sign = (Sum)g.sign, outside = Result::none(0, 0).value * sign;  // taps outside change no result
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const int h = p.h * ROWS, w = p.w * COLUMNS, first_row = h * S - P, first = w * S - P;
        const Element *plane = x + offset(g.x, p.n, p.c, 0, 0, 0);
        Element *to = y + offset(g.y, p.n, p.c, 0, 0, 0);
        Result best[ROWS][COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                best[i][j] = Result::none(max(first_row + i * S, 0) * g.input[2], max(first + j * S, 0));
#pragma unroll
        for (int r = 0; r < (ROWS - 1) * S + K; r++) {
            const int row = first_row + r;
            const bool inside = (unsigned)row < (unsigned)g.input[1];
            const Element *from = plane + (Index)g.x[3] * row;
            Sum v[SPAN];
            if constexpr (COLUMNS == 4)
                load_row_aligned<SPAN, P>(from, first, g.input[2], inside, outside, v);
            else
                load_row<SPAN>(from, step, first, g.input[2], inside, outside, v);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                Result along = Result::none(0, 0);
#pragma unroll
                for (int s = 0; s < K; s++) along.take(v[j * S + s] * sign, s);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
                    if (r - i * S >= 0 && r - i * S < K) best[i][j].merge(along, row * g.input[2] + first + j * S);
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (h + i < g.output[1]) finish<COLUMNS>(g, p, h + i, w, whole, by, best[i], to, indices);
    }
}

template <class Result, int COLUMNS>
DEVICE void windows(const Pool &g, const Tiles &t, const Element *x, Element *y, void *indices, bool whole) {
    if (COLUMNS == 4 || g.x[4] == 1)
        windows_of<Result, COLUMNS, true>(g, t, x, y, indices, whole);
    else
        windows_of<Result, COLUMNS, false>(g, t, x, y, indices, whole);
}

KERNEL(THREADS, 4) pool_fixed_largest(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Largest, 1>(g, t, x, y, indices, whole);
}
KERNEL(THREADS, 3) pool_fixed_largest_fours(const Pool g, const Tiles t, const Element *__restrict__ x,
                                            Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Largest, 4>(g, t, x, y, indices, whole);
}
KERNEL(THREADS, 4) pool_fixed_extreme(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Extreme, 1>(g, t, x, y, indices, whole);
}
KERNEL(THREADS, 3) pool_fixed_extreme_fours(const Pool g, const Tiles t, const Element *__restrict__ x,
                                            Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Extreme, 4>(g, t, x, y, indices, whole);
}
KERNEL(THREADS, 4) pool_fixed_average(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Total, 1>(g, t, x, y, indices, whole);
}
KERNEL(THREADS, 3) pool_fixed_average_fours(const Pool g, const Tiles t, const Element *__restrict__ x,
                                            Element *__restrict__ y, void *__restrict__ indices, const int whole) {
    windows<Total, 4>(g, t, x, y, indices, whole);
}

// ---------------------------------------------------------------------------------------------------------- gradients

constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Rows m * S ... m * S + GRADIENT_ROWS - 1 of dx lie in windows m + FIRST ... of COUNT rows of dy.
constexpr int FIRST = floor_div(P - K + S, S), COUNT = floor_div(GRADIENT_ROWS - 1 + P, S) - FIRST + 1;
constexpr int ACROSS = (K + S - 1) / S;  // windows that hold a column, at most

// Picker is int or long long, what indices are, or char: an average, which has none. dy and indices have the same
// strides.
template <class Picker, bool SIDE_BY_SIDE>
DEVICE void gather_from(const Pool &g, const Tiles &t, const Element *dy, const void *indices, Element *dx) {
    constexpr bool PICKS = sizeof(Picker) > 1;
    const bool constant = g.divisor != 0.0;
    const Division by((Sum)g.divisor);
    const Index step = SIDE_BY_SIDE ? 1 : (Index)g.dy[4];
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const int h = p.h * GRADIENT_ROWS, last = (p.w + P) / S, top = h / S + FIRST;
        const Index first = offset(g.dy, p.n, p.c, 0, top, 0) + step * last;
        const Element *values = dy + first;  // of the row's last window that holds the column
        const Picker *positions = (const Picker *)indices + first;
        int here[GRADIENT_ROWS];  // what an index must be to count for a row
#pragma unroll
        for (int i = 0; i < GRADIENT_ROWS; i++) here[i] = (h + i) * g.input[2] + p.w;
        bool holds[ACROSS];
#pragma unroll
        for (int j = 0; j < ACROSS; j++)
            holds[j] = (unsigned)(last - j) < (unsigned)g.output[2] && (K % S == 0 || p.w + P - (last - j) * S < K);
        Sum sums[GRADIENT_ROWS] = {};
#pragma unroll
        for (int a = 0; a < COUNT; a++, values += (Index)g.dy[3], positions += (Index)g.dy[3]) {
            const bool row = (unsigned)(top + a) < (unsigned)g.output[1];
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                const bool inside = row && holds[j];
                Sum v = 0;
                int picked = -1;
                if (inside) {
                    v = widen(values[-j * step]);
                    if (PICKS) picked = (int)positions[-j * step];
                }
                if (!PICKS && !constant && inside) v /= window_divisor(g, top + a, last - j);
#pragma unroll
                for (int i = 0; i < GRADIENT_ROWS; i++) {
                    const int tap = i + P - (FIRST + a) * S;
                    if (tap < 0 || tap >= K) continue;
                    if (!PICKS || picked == here[i]) sums[i] += v;
                }
            }
        }
        Element *to = dx + offset(g.dx, p.n, p.c, 0, h, p.w);
#pragma unroll
        for (int i = 0; i < GRADIENT_ROWS; i++) {
            if (h + i >= g.input[1]) break;
            to[(Index)g.dx[3] * i] = narrow<Element>(!PICKS && constant ? by(sums[i]) : sums[i]);
        }
    }
}

template <class Picker>
DEVICE void gather(const Pool &g, const Tiles &t, const Element *dy, const void *indices, Element *dx) {
    if (g.dy[4] == 1)
        gather_from<Picker, true>(g, t, dy, indices, dx);
    else
        gather_from<Picker, false>(g, t, dy, indices, dx);
}

KERNEL(THREADS, 4) pool_fixed_pick_gradient(const Pool g, const Tiles t, const Element *__restrict__ dy,
                                            const void *__restrict__ indices, Element *__restrict__ dx) {
    if (g.index_bytes == 4)
        gather<int>(g, t, dy, indices, dx);
    else
        gather<long long>(g, t, dy, indices, dx);
}
KERNEL(THREADS, 4) pool_fixed_average_gradient(const Pool g, const Tiles t, const Element *__restrict__ dy,
                                               Element *__restrict__ dx) {
    gather<char>(g, t, dy, nullptr, dx);
}
