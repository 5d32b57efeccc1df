// What kernels that slide windows over planes share: which output a thread computes, and rows of elements.
//
// Pooling and depthwise convolution are bound by memory: a thread has about 26 instructions for every float that an
// H200 reads or writes in the meantime (4 a cycle and multiprocessor, 4.3 TB/s, 132 multiprocessors at 1.7 GHz). So
// divisions by sizes are multiplications here, and a thread computes a tile of outputs from rows that it loads once.
//
// Threads are numbered so that neighbours touch neighbouring elements:
//
//     channels first   w fastest, then h, d, channel, image        a warp reads along rows
//     channels last    channel fastest, then w, h, d, image        a warp reads pixels, 32 channels of each
//
// w, h and d count tiles. kernels/cuda/tiles.py declares the structs again; a test holds both to each other.
#pragma once
#include "types.cuh"

// A divisor of numbers below 2^31, as a multiplication (Granlund and Montgomery, PLDI 1994, figure 4.1).
struct Divisor {
    unsigned divisor, magic, shift;
};

DEVICE int quotient(int n, const Divisor &by) {
    return (int)((__umulhi((unsigned)n, by.magic) + (unsigned)n) >> by.shift);
}
DEVICE long long quotient(long long n, const Divisor &by) { return n / (long long)by.divisor; }

// The work of a launch: how many items, and what an item's number says.
struct Tiles {
    long long items;
    Divisor columns, rows, depth, channels;
    int channels_last;  // the order of threads
};

struct Place {
    int n, c, d, h, w;
};

template <class I> DEVICE I split(I flat, const Divisor &by, int &remainder) {
    const I rest = quotient(flat, by);
    remainder = (int)(flat - rest * (I)by.divisor);
    return rest;
}

template <class I> DEVICE Place place(I flat, const Tiles &t) {
    Place p;
    const bool last = opaque(t.channels_last);  // else the compiler copies the loops around this, once for each order
    if (last) flat = split(flat, t.channels, p.c);
    flat = split(flat, t.columns, p.w);
    flat = split(flat, t.rows, p.h);
    flat = split(flat, t.depth, p.d);
    if (!last) flat = split(flat, t.channels, p.c);
    p.n = (int)flat;
    return p;
}

#ifdef ELEMENT
template <class T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

// v[j] = row[(first + j) * step], `outside` where that is not among the row's n elements or the row not `inside`. Give
// a literal 1 for step where it is one: the loads of a row then share an address.
template <int SPAN>
DEVICE void load_row(const Element *row, Index step, int first, int n, bool inside, Sum outside, Sum (&v)[SPAN]) {
    const Element *from = row + (Index)first * step;
#pragma unroll
    for (int j = 0; j < SPAN; j++)
        v[j] = inside && (unsigned)(first + j) < (unsigned)n ? widen(from[j * step]) : outside;
}

// The same by vectors of four, of a row whose elements lie side by side: `first` is LEAD before a multiple of four, n
// is one too, and so is the row's address, in elements. Vectors at the ends are loaded whole: a scalar load would cost
// as much, its warp touches the same lines.
//
//     |. . . f|1 2 3 4|5 . . .|      SPAN 6, LEAD 1: three vectors
template <int SPAN, int LEAD>
DEVICE void load_row_aligned(const Element *row, int first, int n, bool inside, Sum outside, Sum (&v)[SPAN]) {
    constexpr int SKIP = (4 - LEAD % 4) % 4, VECTORS = (SKIP + SPAN + 3) / 4;
    Sum loaded[VECTORS * 4];
#pragma unroll
    for (int q = 0; q < VECTORS; q++) {
        const int i = first - SKIP + 4 * q;
        const bool there = inside && (unsigned)i < (unsigned)n;
        Four<Element> four;
        if (there) four = *(const Four<Element> *)(row + i);
#pragma unroll
        for (int j = 0; j < 4; j++) loaded[4 * q + j] = there ? widen(four.v[j]) : outside;
    }
#pragma unroll
    for (int j = 0; j < SPAN; j++) v[j] = loaded[SKIP + j];
}

// Write COLUMNS values side by side from row[first] on, those before n; as a vector where `whole`: n and the row's
// address are multiples of four elements.
template <int COLUMNS, class T>
DEVICE void store_row(T *row, Index step, int first, int n, bool whole, const T (&v)[COLUMNS]) {
    if constexpr (COLUMNS == 4) {
        if (whole) {
            if (first < n) *(Four<T> *)(row + first) = {{v[0], v[1], v[2], v[3]}};
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        if (first + j < n) row[(Index)(first + j) * step] = v[j];
}
#endif
