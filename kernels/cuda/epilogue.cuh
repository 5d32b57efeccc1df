// The end of a convolution: out = activation(sum + bias + residual), in the accumulator's type, rounded once on storing.
//
// Activations are PyTorch's, with its defaults; their numbers are places in ACTIVATIONS of kernels/__init__.py, counted
// from 1. The kind is an argument, not a #define: it is the same for every thread, so that the branch costs a few
// cycles an output, and one compiled kernel serves all of them.
#pragma once
#include "types.cuh"

enum Activation { IDENTITY, RELU, RELU6, LEAKY_RELU, SILU, GELU, SIGMOID, TANH, HARDSWISH };

DEVICE float exponential(float v) { return expf(v); }
DEVICE double exponential(double v) { return exp(v); }
DEVICE float hyperbolic_tangent(float v) { return tanhf(v); }
DEVICE double hyperbolic_tangent(double v) { return tanh(v); }
DEVICE float complementary_error(float v) { return erfcf(v); }
DEVICE double complementary_error(double v) { return erfc(v); }

template <class S> DEVICE S sigmoid(S v) {
    return S(1) / (S(1) + exponential(-v));
}

// Comparisons are written so that NaN stays NaN.
template <class S> DEVICE S activate(S v, int kind) {
    switch (kind) {
        case RELU: return v < S(0) ? S(0) : v;
        case RELU6: return v < S(0) ? S(0) : v > S(6) ? S(6) : v;
        case LEAKY_RELU: return v < S(0) ? v * S(0.01) : v;
        case SILU: return v * sigmoid(v);
        case GELU: return S(0.5) * v * complementary_error(v * S(-0.70710678118654752440));  // 1 + erf would cancel
        case SIGMOID: return sigmoid(v);
        case TANH: return hyperbolic_tangent(v);
        case HARDSWISH: {
            const S gate = v + S(3);
            return v * (gate < S(0) ? S(0) : gate > S(6) ? S(6) : gate) / S(6);
        }
        default: return v;
    }
}

// The same out of line, but for the most frequent ones: the others' code is long, and a thread that has many outputs
// would bring it along for each. In direct.cu it was four fifths of the machine code.
template <class S> __device__ __noinline__ S activate_rarely(S v, int kind) { return activate(v, kind); }
template <class S> DEVICE S activated(S v, int kind) {
    return kind == IDENTITY ? v : kind == RELU ? activate(v, RELU) : activate_rarely(v, kind);
}

// One output: its channel for the bias, its offset in the residual; null pointers where there is none.
template <class T, class I>
DEVICE T finish(typename Accumulator<T>::type sum, const T *bias, int channel, const T *residual, I offset, int kind) {
    if (bias) sum += widen(bias[channel]);
    if (residual) sum += widen(residual[offset]);
    return narrow<T>(activated(sum, kind));
}
