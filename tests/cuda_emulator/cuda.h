// CUDA's vocabulary for the emulator: what NVRTC knows without a header. Included in front of every .cu file.
#pragma once
#include <cmath>

#include "undefined.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static_assert(false, "take shared memory from SHARED_MEMORY: static memory starts as zeros here");

#define KERNEL(...) extern "C" void
#define SHARED_MEMORY(name) unsigned char *name = emulator::worker->shared

#define threadIdx (emulator::self().index)
#define blockIdx (emulator::worker->block)
#define blockDim (emulator::worker->block_size)
#define gridDim (emulator::worker->grid)
#define warpSize 32

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
using std::isnan, std::isinf, std::abs;

namespace emulator {
template <class To, class From> To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
inline float float_from_half(unsigned short v) { return (float)bits<_Float16>(v); }
inline unsigned short half_from_float(float v) { return bits<unsigned short>((_Float16)v); }

// Every lane of the mask gives a value; then each may see those of the others.
template <class T> void give(Collective kind, unsigned mask, const T &v) {
    static_assert(sizeof(T) <= SLOT, "");
    Fiber &f = self();
    memcpy(worker->warps[f.warp].given[f.lane], &v, sizeof v);
    f.collective = kind, f.mask = mask;
    if (!(mask >> f.lane & 1)) {
        fail("thread %d calls a collective whose mask %08x does not name its lane", (int)(worker->current - worker->fibers), mask);
    }
    pause(AT_WARP);
}
template <class T> T see(int lane) {
    T v;
    memcpy(&v, worker->warps[self().warp].seen[lane], sizeof v);
    return v;
}
template <class T> T shuffle(unsigned mask, T v, int from) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    give(SHUFFLE, mask, v);
    return see<T>(from);
}
}  // namespace emulator

inline unsigned __float_as_uint(float v) { return emulator::bits<unsigned>(v); }
inline int __float_as_int(float v) { return emulator::bits<int>(v); }
inline float __uint_as_float(unsigned v) { return emulator::bits<float>(v); }
inline float __int_as_float(int v) { return emulator::bits<float>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
template <class T> T __ldg(const T *p) { return *p; }

inline int atomicMax(int *at, int v) {  // of a block's shared memory: its threads take turns
    const int before = *at;
    *at = max(before, v);
    return before;
}

inline void __syncthreads() { emulator::pause(emulator::AT_BLOCK); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::give(emulator::SYNC, mask, 0); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// Lanes outside of a segment of `width` lanes keep their own value, as in CUDA.
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    const int lane = emulator::self().lane;
    return emulator::shuffle(mask, v, (lane & ~(width - 1)) + (from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32) {
    const int lane = emulator::self().lane, from = lane ^ flip;
    return emulator::shuffle(mask, v, from / width > lane / width ? lane : from);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = emulator::self().lane;
    return emulator::shuffle(mask, v, lane % width + (int)by < width ? lane + (int)by : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = emulator::self().lane;
    return emulator::shuffle(mask, v, lane % width >= (int)by ? lane - (int)by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emulator::give(emulator::BALLOT, mask, predicate);
    unsigned found = 0;
    for (int j = 0; j < 32; j++)
        if ((emulator::self().present >> j & 1) && emulator::see<int>(j)) found |= 1u << j;
    return found;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

#include "ptx.h"
