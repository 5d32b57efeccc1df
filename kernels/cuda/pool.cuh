// A pooling as the kernels are told it, its windows, and what they reduce with.
//
// Axes are depth, height, width; lower ranks have leading axes of size 1. Strides count elements of each array, any
// number, 64-bit. Indices are flat within one unpadded plane, -1 for a window without an element. kernels/cuda/
// pool.py declares the struct again, field by field; a test holds both to each other.
#pragma once
#include "tile.cuh"

struct Pool {
    int batch;
    int channels;
    int adaptive;  // windows share the axis out evenly; kernel to padding_after say nothing
    int input[3];
    int output[3];
    int kernel[3];
    int stride[3];
    int dilation[3];
    int padding[3];  // before the first element
    int padding_after[3];
    Divisor by[3];  // gradients divide by these: an axis' stride, or its size where windows are adaptive
    int include_padding;  // an average counts padded positions
    int sign;             // 1: a maximum, -1: a minimum
    int index_bytes;      // 4 or 8; 0: no indices are written
    double divisor;       // of every window of an average; 0: each has its own
    double norm;
    long long x[5];  // n, c, d, h, w
    long long dx[5];
    long long y[5];
    long long dy[5];
    long long indices[5];
};

#ifdef ELEMENT
DEVICE Sum infinite() { return (Sum)__uint_as_float(0x7f800000u); }

// Where an element or a window lies.
DEVICE Index offset(const long long by[5], int n, int c, int d, int h, int w) {
    return (Index)by[0] * n + (Index)by[1] * c + (Index)by[2] * d + (Index)by[3] * h + (Index)by[4] * w;
}
DEVICE Index offset(const long long by[5], const Place &p) { return offset(by, p.n, p.c, p.d, p.h, p.w); }

// Elements start, start + dilation ... of an axis, and how many positions the window has, explicit padding included.
struct Span {
    int start, count, padded;
};

DEVICE int over(int n, int dilation) { return dilation == 1 ? n : n / dilation; }

DEVICE Span span(const Pool &g, int axis, int o) {
    const int size = g.input[axis];
    if (g.adaptive) {  // floor(o * size / outputs) ... ceil((o + 1) * size / outputs)
        const int outputs = g.output[axis];
        if (outputs == 1) return {0, size, size};
        const long long begin = (long long)o * size, end = begin + size;
        int first, last;
        if (end + outputs < 1ll << 31)
            first = (int)begin / outputs, last = ((int)end + outputs - 1) / outputs;
        else
            first = (int)(begin / outputs), last = (int)((end + outputs - 1) / outputs);
        return {first, last - first, last - first};
    }
    const int dilation = g.dilation[axis], kernel = g.kernel[axis];
    const int first = o * g.stride[axis] - g.padding[axis];
    const int skipped = first < 0 ? over(-first + dilation - 1, dilation) : 0;
    const int last = first < size ? min(kernel - 1, over(size - 1 - first, dilation)) : -1;
    const int end = size + g.padding_after[axis] - 1 - first;
    return {first + skipped * dilation, max(last - skipped + 1, 0), min(kernel - 1, over(end, dilation)) + 1};
}

// The windows first ... last of an axis that may hold element i; with dilation, those that `holds`.
struct Cover {
    int first, last;
};

DEVICE Cover cover(const Pool &g, int axis, int i) {
    const int outputs = g.output[axis];
    if (g.adaptive) {  // floor(i * outputs / size) ... ceil((i + 1) * outputs / size) - 1
        if (outputs == 1) return {0, 0};
        const int size = g.input[axis];
        const long long begin = (long long)i * outputs, end = begin + outputs + size - 1;
        if (end < 1ll << 31) return {quotient((int)begin, g.by[axis]), quotient((int)end, g.by[axis]) - 1};
        return {(int)(begin / size), (int)(end / size) - 1};
    }
    const int at = i + g.padding[axis], before = at - (g.kernel[axis] - 1) * g.dilation[axis];
    const int first = before <= 0 ? 0 : quotient(before + g.stride[axis] - 1, g.by[axis]);
    return {first, min(quotient(at, g.by[axis]), outputs - 1)};
}

DEVICE bool holds(const Pool &g, int axis, int i, int o) {
    if (g.adaptive || g.dilation[axis] == 1) return true;
    return (i + g.padding[axis] - o * g.stride[axis]) % g.dilation[axis] == 0;
}

// The divisor of an average's window where not all have the same.
DEVICE Sum own_divisor(const Pool &g, const Span &d, const Span &h, const Span &w) {
    const Sum counted = (Sum)d.count * (Sum)h.count * (Sum)w.count;
    if (counted == Sum(0)) return Sum(1);
    return g.include_padding ? (Sum)d.padded * (Sum)h.padded * (Sum)w.padded : counted;
}
DEVICE Sum own_divisor(const Pool &g, int d, int h, int w) { return own_divisor(g, span(g, 0, d), span(g, 1, h), span(g, 2, w)); }

// Division by one number again and again: `reciprocal` is 1 / divisor rounded, the remainder corrects the quotient
// (Markstein, IBM Journal 34-1, 1990); a remainder that is NaN belongs to an infinite quotient, or NaN.
struct Division {
    Sum divisor, reciprocal;
    DEVICE Division(Sum by) : divisor(by), reciprocal(Sum(1) / by) {}
    DEVICE Sum operator()(Sum v) const {
        const Sum q = v * reciprocal, left = multiply_add(-q, divisor, v);
        return left == left ? multiply_add(left, reciprocal, q) : q;
    }
};

// Whether v replaces the best so far: it is larger, or the first NaN. Where they are equal, the first stays.
DEVICE bool beats(Sum v, Sum best) { return !(v <= best) && best == best; }

DEVICE double larger(double a, double b) { return b > a || b != b ? b : a; }
DEVICE float larger(float a, float b) {
#if !defined(FASTCONV_EMULATOR) && __CUDA_ARCH__ >= 800
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
    return most;
#else
    return a != a ? a : b > a || b != b ? b : a;
#endif
}

DEVICE void put_index(void *indices, int bytes, Index at, Index value) {
    if (bytes == 4)
        ((int *)indices)[at] = (int)value;
    else if (bytes == 8)
        ((long long *)indices)[at] = value;
}
DEVICE long long get_index(const void *indices, int bytes, Index at) {
    return bytes == 4 ? (long long)((const int *)indices)[at] : ((const long long *)indices)[at];
}
#endif
