// Element types, and the small vocabulary every kernel file uses. No CUDA header is included anywhere.
//
//   ELEMENT    defined by the launcher: float, double, float16 or bfloat16, what arrays hold
//   INDEX      defined by the launcher: int, or long long where an offset may pass 2^31
//   Sum        what ELEMENT accumulates in: float for the 16-bit types, else ELEMENT itself
//
//   KERNEL(threads, blocks) name(...)    an extern "C" entry point: most threads of a block, least blocks of a
//              multiprocessor. Say both: with the first alone ptxas spills a little to reach the next step of occupancy.
//   SHARED_MEMORY(name)    the block's dynamic shared memory, unsigned char *, 128-byte aligned
//
// The tests build the same files for the CPU with FASTCONV_EMULATOR defined; what then differs is in tests/cuda_emulator.
#pragma once

#ifndef FASTCONV_EMULATOR
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#endif
#define DEVICE __device__ __forceinline__

// The 16-bit types are storage: arithmetic converts to float and back, rounding to nearest even.
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <class T> struct Accumulator { using type = T; };
template <> struct Accumulator<float16> { using type = float; };
template <> struct Accumulator<bfloat16> { using type = float; };

DEVICE float widen(float v) { return v; }
DEVICE double widen(double v) { return v; }
DEVICE float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }

template <class T> struct Narrow { static DEVICE T from(T v) { return v; } };
template <> struct Narrow<bfloat16> {
    static DEVICE bfloat16 from(float v) {
        const unsigned u = __float_as_uint(v);
        const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        return {(unsigned short)(nan ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
    }
};

#ifdef FASTCONV_EMULATOR
template <class T> DEVICE T opaque(T v) { return v; }
DEVICE float widen(float16 v) { return emulator::float_from_half(v.bits); }
template <> struct Narrow<float16> {
    static DEVICE float16 from(float v) { return {emulator::half_from_float(v)}; }
};
#else
// The same number, of which the compiler knows nothing, in each place anew.
DEVICE int opaque(int v) {
    int same;
    asm volatile("mov.b32 %0, %1;" : "=r"(same) : "r"(v));
    return same;
}
DEVICE long long opaque(long long v) {
    long long same;
    asm volatile("mov.b64 %0, %1;" : "=l"(same) : "l"(v));
    return same;
}
DEVICE float widen(float16 v) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}
template <> struct Narrow<float16> {
    static DEVICE float16 from(float v) {
        float16 narrow;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
        return narrow;
    }
};
#endif

// The accumulator's value as an array holds it.
template <class T> DEVICE T narrow(typename Accumulator<T>::type v) { return Narrow<T>::from(v); }

DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class T> DEVICE T ceil_div(T a, T b) { return (a + b - 1) / b; }

#ifdef ELEMENT
using Element = ELEMENT;
using Sum = Accumulator<Element>::type;
#endif
#ifdef INDEX
using Index = INDEX;
#endif
