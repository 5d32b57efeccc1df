// The functions of kernels/cuda/ptx.cuh as the emulator executes them.
//
// An asynchronous copy lands when it is issued (eager), or not before a wait that demands it: the two extremes of what
// the hardware may do. A kernel that reads too early is wrong under the second, one that overwrites a buffer still being
// read under the first.
#pragma once

template <int BYTES> inline void copy_async(void *to, const void *from, bool inside) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    emulator::Fiber &f = emulator::self();
    const emulator::Copy c{to, from, BYTES, inside, f.groups + 1};
    if ((uintptr_t)to % BYTES || (inside && (uintptr_t)from % BYTES)) {
        emulator::fail("copy_async<%d> from %p to %p, which is not aligned", BYTES, from, to);
        emulator::pause(emulator::RUNS);
    }
    if (emulator::worker->order.eager) return land(c);
    if (f.pending == emulator::MAX_COPIES) {
        emulator::fail("more than %d asynchronous copies of a thread are under way", emulator::MAX_COPIES);
        emulator::pause(emulator::RUNS);
    }
    f.copies[f.pending++] = c;
}

inline void commit() { emulator::self().groups++; }

template <int GROUPS> inline void wait() {
    emulator::Fiber &f = emulator::self();
    if (f.groups >= GROUPS) emulator::land_up_to(f, f.groups - GROUPS);
}

namespace emulator {
inline void load_four(unsigned r[4], const void *row, bool transposed) {
    if ((uintptr_t)row % 16) {
        fail("thread %d: ldmatrix from %p, which is not aligned to 16 bytes", (int)(worker->current - worker->fibers), row);
        pause(RUNS);
    }
    struct Row { unsigned short e[8]; } mine;
    memcpy(&mine, row, 16);  // each lane reads the row that it names
    give(MATRIX, ~0u, mine);
    const int i = self().lane / 4, j = self().lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
        const unsigned low = transposed ? see<Row>(m * 8 + j).e[i] : see<Row>(m * 8 + i).e[j];
        const unsigned high = transposed ? see<Row>(m * 8 + j + 1).e[i] : see<Row>(m * 8 + i).e[j + 1];
        r[m] = low | high << 16;
    }
}
}  // namespace emulator

inline void load_matrices(unsigned r[4], const void *row) { emulator::load_four(r, row, false); }
inline void load_matrices_transposed(unsigned r[4], const void *row) { emulator::load_four(r, row, true); }

// Sums the 16 products of an element in order, in float: the hardware's own order is not documented.
template <class T> inline void multiply_matrices(float c[4], const unsigned a[4], const unsigned b[2]) {
    struct Fragments { float a[8], b[4]; } mine;
    for (int i = 0; i < 8; i++) mine.a[i] = widen(T{(unsigned short)(a[i / 2] >> i % 2 * 16)});
    for (int i = 0; i < 4; i++) mine.b[i] = widen(T{(unsigned short)(b[i / 2] >> i % 2 * 16)});
    emulator::give(emulator::MATRIX, ~0u, mine);
    const int lane = emulator::self().lane;
    for (int e = 0; e < 4; e++) {
        const int row = lane / 4, column = lane % 4 * 2 + e % 2;  // a's registers 1 and 3 are eight rows down
        for (int k = 0; k < 16; k++) {
            const Fragments left = emulator::see<Fragments>(row * 4 + k % 8 / 2);
            const Fragments right = emulator::see<Fragments>(column * 4 + k % 8 / 2);
            c[e] += left.a[(k / 8 * 2 + e / 2) * 2 + k % 2] * right.b[k / 8 * 2 + k % 2];
        }
    }
}
