// A convolution as the kernels are told it: sizes, and the strides of its arrays, in one struct passed by value.
//
//   y[n, k, p] = sum over c, r  w[k, c, r] * x[n, c, p * stride + r * dilation - padding]      three spatial axes
//
// Axes are depth, height, width; lower ranks have leading axes of size 1. Strides count elements, may be zero or
// negative, and are 64-bit: cast them to Index, which the launcher chooses wide enough for the problem. kernels/cuda/
// launch.py declares the same struct field by field (CONV); a test holds both to each other.
#pragma once
#include "types.cuh"

enum PaddingMode { ZEROS, REFLECT, REPLICATE, CIRCULAR };

struct Conv {
    int batch;
    int groups;
    int inputs;      // channels of a group
    int outputs;     // channels of a group
    int mode;        // PaddingMode
    int activation;  // Activation of epilogue.cuh
    int input[3];
    int output[3];
    int kernel[3];
    int stride[3];
    int dilation[3];
    int padding[3];  // before the first element
    int padding_after[3];
    long long x[5];         // n, c, d, h, w
    long long w[5];         // k, c, d, r, s
    long long y[5];         // n, k, d, h, w
    long long residual[5];  // as what is written: y forward, x for the input gradient
};

// The element that position i of a padded axis of n elements shows; negative: a zero.
DEVICE int source(int i, int n, int mode) {
    if ((unsigned)i < (unsigned)n) return i;
    mode = opaque(mode);  // else the compiler copies the loops around this, once for each mode
    if (mode == ZEROS) return -1;
    if (mode == REFLECT) return n - 1 - abs(n - 1 - abs(i));
    if (mode == REPLICATE) return i < 0 ? 0 : n - 1;
    return i < 0 ? i + n : i - n;  // circular padding is at most the axis
}

// A flat position of an array of the sizes given, w fastest.
struct Position { int n, d, h, w; };

template <class I> DEVICE Position position(I flat, const int size[3]) {
    Position at;
    at.w = (int)(flat % size[2]), flat /= size[2];
    at.h = (int)(flat % size[1]), flat /= size[1];
    at.d = (int)(flat % size[0]);
    at.n = (int)(flat / size[0]);
    return at;
}
