// Instructions that C++ cannot say. The emulator of the tests brings the same functions (tests/cuda_emulator/ptx.h).
//
//   copy_async<bytes>(to, from, inside)   4, 8 or 16 bytes from global to shared memory without registers; zeros where
//                                         not `inside` (`from` must still be an address that may be formed, it is not
//                                         read). Both addresses are aligned to `bytes`. On sm_75 an ordinary copy, done
//                                         at once: slower, as right.
//   commit()                              the copies since the last commit become a group of this thread
//   wait<n>()                             until all but this thread's n latest groups have landed. Other threads see
//                                         them after a __syncthreads() that follows.
//
// Matrices of 16-bit elements, by a whole warp (sm_80 for bfloat16):
//
//   load_matrices(r, row)              four 8x8 matrices from shared memory; lane l gives the address of row l % 8 of
//   load_matrices_transposed(r, row)   matrix l / 8, 16 aligned bytes. r[m] of lane l: elements (l / 4, l % 4 * 2) and the
//                                      next one of matrix m, or of its transpose
//   multiply_matrices<T>(c, a, b)      c[16][8] += a[16][16] * b[16][8], in float. Lane l holds, with i = l / 4, j = l % 4 * 2:
//
//                      a[0]: (i, j)   a[2]: (i, j + 8)           b[0]: (j, i) and (j + 1, i)
//                      a[1]: (i + 8, j)   a[3]: (i + 8, j + 8)   b[1]: (j + 8, i) and (j + 9, i)
//                      c[0], c[1]: (i, j), (i, j + 1)            c[2], c[3]: (i + 8, j), (i + 8, j + 1)
#pragma once
#include "types.cuh"

#ifndef FASTCONV_EMULATOR
DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

#if __CUDA_ARCH__ >= 800
template <int BYTES> DEVICE void copy_async(void *to, const void *from, bool inside) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    const int bytes = inside ? BYTES : 0;
    if constexpr (BYTES == 16)  // past the L1 cache, whose lines the tile would only evict
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "n"(BYTES) : "memory");
}

DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int GROUPS> DEVICE void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }
#else
template <int BYTES> DEVICE void copy_async(void *to, const void *from, bool inside) {
    struct alignas(BYTES) Words {
        unsigned w[BYTES / 4];
    };
    Words v = {};
    if (inside) v = *(const Words *)from;
    *(Words *)to = v;
}

DEVICE void commit() {}

template <int GROUPS> DEVICE void wait() {}
#endif

DEVICE void load_matrices(unsigned r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void load_matrices_transposed(unsigned r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

template <class T> DEVICE void multiply_matrices(float c[4], const unsigned a[4], const unsigned b[2]);

template <> DEVICE void multiply_matrices<float16>(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <> DEVICE void multiply_matrices<bfloat16>(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
