// Pooling and its gradients, for every window: any kernel, stride, dilation, padding, adaptive; any strides of arrays.
//
//   extreme    y[n, c, o]  = the largest x[n, c, i] of window o (the smallest), and where it was first met
//   average    y[n, c, o]  = the window's sum over its divisor
//   norm       y[n, c, o]  = (the window's sum of x^p)^(1/p)
//   gradients  dx[n, c, i] = sum over the windows o that hold i:
//                 pick      dy[n, c, o]                       where the window's index is i's
//                 average   dy[n, c, o] / the window's divisor
//                 norm      dy[n, c, o] * y[n, c, o]^(1 - p) * x[n, c, i]^(p - 1)      windows with y = 0 give 0
//
// Two forms of the first three:
//
//   a thread a window              a window's positions among G threads (_split)
//
//      w0  w1  w2  w3                  w0: t0 t1 ... t7 t0 t1 ... t7       channels first: neighbours, so a warp
//      t0  t1  t2  t3                  w1: t8 t9 ... t15 ...               reads lines; channels last: 256/G windows
//                                      partial results -> shared memory    are the neighbours
//                                      -> halved until one is left
//
// The first for small windows, whose neighbours share lines in the L1 cache. The second where windows are large: whole
// planes, where a warp of the first form would touch 32 lines at a time and lose them before it comes back.
//
// Gradients gather: a thread finds the windows that hold its element and writes it once, so no atomic addition and the
// same bits on every run. `spread` is the average of whole planes, by vectors of four elements.
//
// Memory: x once, y (and indices) once; a gradient dy (and indices) once, dx once. What overlapping windows read again
// comes from the L1 cache. It is bound by memory for float32 windows of at most about 4 x 4 elements or little
// overlap; more overlap costs instructions (about 8 a tap), for which pool_fixed.cu is faster.
#include "pool.cuh"

constexpr int THREADS = 256;

struct Extreme {
    Sum value;
    Index where;
    DEVICE void take(Sum v, Index i) {
        if (beats(v, value)) value = v, where = i;
    }
    DEVICE void merge(const Extreme &o) {  // of equal ones, and of NaNs, the first
        const bool tie = o.value == value || (o.value != o.value && value != value);
        const bool earlier = o.where >= 0 && (where < 0 || o.where < where);
        if (tie ? earlier : beats(o.value, value)) *this = o;
    }
};

struct Total {
    Sum value;
    DEVICE void merge(const Total &o) { value += o.value; }
};

struct Powers {
    double value;
    DEVICE void merge(const Powers &o) { value += o.value; }
};

DEVICE double power(double v, double p) { return p == 1.0 ? v : p == 2.0 ? v * v : pow(v, p); }
DEVICE double root(double v, double p) { return p == 1.0 ? v : p == 2.0 ? sqrt(v) : pow(v, 1.0 / p); }

// A window's axes, and its taps by number, w fastest.
struct Window {
    Span d, h, w;
    DEVICE Window(const Pool &g, const Place &p) : d(span(g, 0, p.d)), h(span(g, 1, p.h)), w(span(g, 2, p.w)) {}
    DEVICE Index taps() const { return (Index)d.count * h.count * w.count; }
};

// Every tap of a window that is this thread's: use(value, flat position). `lane` and `lanes`: one of how many.
template <class Use>
DEVICE void each_tap(const Pool &g, const Window &at, const Element *x, Index lane, Index lanes, Use use) {
    if (lanes == 1) {
        for (int d = 0; d < at.d.count; d++) {
            const int z = at.d.start + d * g.dilation[0];
            for (int r = 0; r < at.h.count; r++) {
                const int row = at.h.start + r * g.dilation[1];
                const Element *from = x + (Index)g.x[2] * z + (Index)g.x[3] * row;
                const Index flat = ((Index)z * g.input[1] + row) * g.input[2];
#pragma unroll 4
                for (int s = 0; s < at.w.count; s++) {
                    const int column = at.w.start + s * g.dilation[2];
                    use(widen(from[(Index)g.x[4] * column]), flat + column);
                }
            }
        }
        return;
    }
    const bool row_only = at.d.count * at.h.count == 1;
#pragma unroll 4
    for (Index tap = lane; tap < at.taps(); tap += lanes) {
        const int line = row_only ? 0 : (int)(tap / at.w.count);
        const int column = at.w.start + (int)(tap - (Index)line * at.w.count) * g.dilation[2];
        const int row = at.h.start + line % at.h.count * g.dilation[1], z = at.d.start + line / at.h.count * g.dilation[0];
        use(widen(x[(Index)g.x[2] * z + (Index)g.x[3] * row + (Index)g.x[4] * column]),
            ((Index)z * g.input[1] + row) * g.input[2] + column);
    }
}

DEVICE Extreme extreme_of(const Pool &g, const Window &at, const Element *x, Index lane, Index lanes) {
    const Index first = ((Index)at.d.start * g.input[1] + at.h.start) * g.input[2] + at.w.start;
    Extreme best = {-infinite(), at.taps() > 0 ? first : Index(-1)};
    const Sum sign = (Sum)g.sign;
    each_tap(g, at, x, lane, lanes, [&](Sum v, Index i) { best.take(v * sign, i); });
    return best;
}

DEVICE Total total_of(const Pool &g, const Window &at, const Element *x, Index lane, Index lanes) {
    Total sum = {};
    each_tap(g, at, x, lane, lanes, [&](Sum v, Index) { sum.value += v; });
    return sum;
}

DEVICE Powers powers_of(const Pool &g, const Window &at, const Element *x, Index lane, Index lanes) {
    Powers sum = {};
    each_tap(g, at, x, lane, lanes, [&](Sum v, Index) { sum.value += power((double)v, g.norm); });
    return sum;
}

DEVICE void finish(const Pool &g, const Place &p, const Window &, const Extreme &best, Element *y, void *indices) {
    y[offset(g.y, p)] = narrow<Element>(best.value * (Sum)g.sign);
    put_index(indices, g.index_bytes, offset(g.indices, p), best.where);
}
DEVICE void finish(const Pool &g, const Place &p, const Window &at, const Total &sum, Element *y, void *) {
    const Sum divisor = g.divisor != 0.0 ? (Sum)g.divisor : own_divisor(g, at.d, at.h, at.w);
    y[offset(g.y, p)] = narrow<Element>(sum.value / divisor);
}
DEVICE void finish(const Pool &g, const Place &p, const Window &, const Powers &sum, Element *y, void *) {
    y[offset(g.y, p)] = narrow<Element>((Sum)root(sum.value, g.norm));
}

#define EACH_ITEM(flat) \
    for (Index flat = (Index)blockIdx.x * THREADS + threadIdx.x; flat < (Index)t.items; flat += (Index)gridDim.x * THREADS)

// ------------------------------------------------------------------------------------------------ a thread a window

template <class Reduce>
DEVICE void windows(const Pool &g, const Tiles &t, const Element *x, Element *y, void *indices, Reduce reduce) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const Window at(g, p);
        finish(g, p, at, reduce(g, at, x + offset(g.x, p.n, p.c, 0, 0, 0), 0, 1), y, indices);
    }
}

KERNEL(THREADS, 4) pool_extreme(const Pool g, const Tiles t, const Element *__restrict__ x, Element *__restrict__ y,
                                void *__restrict__ indices) {
    windows(g, t, x, y, indices, extreme_of);
}

KERNEL(THREADS, 4) pool_average(const Pool g, const Tiles t, const Element *__restrict__ x, Element *__restrict__ y) {
    windows(g, t, x, y, nullptr, total_of);
}

KERNEL(THREADS, 3) pool_norm(const Pool g, const Tiles t, const Element *__restrict__ x, Element *__restrict__ y) {
    windows(g, t, x, y, nullptr, powers_of);
}

// --------------------------------------------------------------------------------------- a window's positions shared

// Thread i of a block holds lane i % lanes of window i / lanes (channels first), or lane i / per of window i % per.
template <class Result, class Reduce>
DEVICE void windows_split(const Pool &g, const Tiles &t, const Element *x, Element *y, void *indices, int lanes,
                          Reduce reduce) {
    SHARED_MEMORY(memory);
    Result *partial = (Result *)memory;
    const int i = threadIdx.x, per = THREADS / lanes;
    const int lane = t.channels_last ? i / per : i % lanes, slot = t.channels_last ? i % per : i / lanes;
    const int next = t.channels_last ? per : 1;  // from a lane to the next one of the same window
    for (Index first = (Index)blockIdx.x * per; first < (Index)t.items; first += (Index)gridDim.x * per) {
        const bool inside = first + slot < (Index)t.items;
        const Place p = place(inside ? first + slot : first, t);
        const Window at(g, p);
        Result mine = reduce(g, at, x + offset(g.x, p.n, p.c, 0, 0, 0), lane, lanes);
        __syncthreads();  // the last windows' results have been read
        for (int half = lanes / 2; half > 0; half /= 2) {
            if (lane < 2 * half) partial[i] = mine;
            __syncthreads();
            if (lane < half) mine.merge(partial[i + half * next]);
        }
        if (inside && lane == 0) finish(g, p, at, mine, y, indices);
    }
}

KERNEL(THREADS, 4) pool_extreme_split(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      Element *__restrict__ y, void *__restrict__ indices, const int lanes) {
    windows_split<Extreme>(g, t, x, y, indices, lanes, extreme_of);
}

KERNEL(THREADS, 4) pool_average_split(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      Element *__restrict__ y, const int lanes) {
    windows_split<Total>(g, t, x, y, nullptr, lanes, total_of);
}

KERNEL(THREADS, 3) pool_norm_split(const Pool g, const Tiles t, const Element *__restrict__ x, Element *__restrict__ y,
                                   const int lanes) {
    windows_split<Powers>(g, t, x, y, nullptr, lanes, powers_of);
}

// ---------------------------------------------------------------------------------------------------------- gradients

// Every window that holds element p: use(d, h, w).
template <class Use> DEVICE void each_window(const Pool &g, const Place &p, Use use) {
    const Cover d = cover(g, 0, p.d), h = cover(g, 1, p.h), w = cover(g, 2, p.w);
    for (int i = d.first; i <= d.last; i++) {
        if (!holds(g, 0, p.d, i)) continue;
        for (int j = h.first; j <= h.last; j++) {
            if (!holds(g, 1, p.h, j)) continue;
            for (int k = w.first; k <= w.last; k++)
                if (holds(g, 2, p.w, k)) use(i, j, k);
        }
    }
}

KERNEL(THREADS, 3) pool_pick_gradient(const Pool g, const Tiles t, const Element *__restrict__ dy,
                                      const void *__restrict__ indices, Element *__restrict__ dx) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const Element *gradient = dy + offset(g.dy, p.n, p.c, 0, 0, 0);
        const Index first = offset(g.indices, p.n, p.c, 0, 0, 0);
        const Index here = ((Index)p.d * g.input[1] + p.h) * g.input[2] + p.w;
        Sum sum = 0;
        each_window(g, p, [&](int d, int h, int w) {
            if (get_index(indices, g.index_bytes, first + offset(g.indices, 0, 0, d, h, w)) == here)
                sum += widen(gradient[offset(g.dy, 0, 0, d, h, w)]);
        });
        dx[offset(g.dx, p)] = narrow<Element>(sum);
    }
}

KERNEL(THREADS, 4) pool_average_gradient(const Pool g, const Tiles t, const Element *__restrict__ dy,
                                         Element *__restrict__ dx) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const Element *gradient = dy + offset(g.dy, p.n, p.c, 0, 0, 0);
        Sum sum = 0;
        each_window(g, p, [&](int d, int h, int w) {
            const Sum v = widen(gradient[offset(g.dy, 0, 0, d, h, w)]);
            sum += g.divisor != 0.0 ? v : v / own_divisor(g, d, h, w);
        });
        dx[offset(g.dx, p)] = narrow<Element>(g.divisor != 0.0 ? sum / (Sum)g.divisor : sum);
    }
}

KERNEL(THREADS, 3) pool_norm_gradient(const Pool g, const Tiles t, const Element *__restrict__ x,
                                      const Element *__restrict__ y, const Element *__restrict__ dy,
                                      Element *__restrict__ dx) {
    EACH_ITEM(flat) {
        const Place p = place(flat, t);
        const Element *norms = y + offset(g.y, p.n, p.c, 0, 0, 0), *gradient = dy + offset(g.dy, p.n, p.c, 0, 0, 0);
        const double exponent = g.norm;
        double sum = 0;
        each_window(g, p, [&](int d, int h, int w) {
            const double norm = (double)widen(norms[offset(g.y, 0, 0, d, h, w)]);
            const double v = (double)widen(gradient[offset(g.dy, 0, 0, d, h, w)]);
            if (norm == 0.0) return;
            sum += exponent == 1.0 ? v : exponent == 2.0 ? v / norm : v * pow(norm, 1.0 - exponent);
        });
        // 0 times an infinite power must stay 0
        if (exponent != 1.0 && sum != 0.0) sum *= power((double)widen(x[offset(g.x, p)]), exponent - 1.0);
        dx[offset(g.dx, p)] = narrow<Element>((Sum)sum);
    }
}

// The gradient of an average whose windows are whole planes: every element of a plane is its dy over the divisor. dx is
// contiguous: `runs` of `inner` elements (channels first: planes; last: images) which show `kinds` elements of dy each,
// contiguous too. An item is four elements.
KERNEL(THREADS, 4) pool_spread(const Element *__restrict__ dy, Element *__restrict__ dx, const long long count,
                               const Divisor inner, const Divisor kinds, const double divisor, const int aligned) {
    for (Index four = (Index)blockIdx.x * THREADS + threadIdx.x; four * 4 < (Index)count;
         four += (Index)gridDim.x * THREADS) {
        Element v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const Index i = min(four * 4 + j, (Index)count - 1);
            int kind;
            split(i, kinds, kind);
            v[j] = narrow<Element>(widen(dy[quotient(i, inner) * (Index)kinds.divisor + kind]) / (Sum)divisor);
        }
        if (aligned && four * 4 + 3 < (Index)count)
            *(Four<Element> *)(dx + four * 4) = {{v[0], v[1], v[2], v[3]}};
        else
            for (int j = 0; j < 4 && four * 4 + j < (Index)count; j++) dx[four * 4 + j] = v[j];
    }
}
