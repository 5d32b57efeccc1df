// What g++'s -fsanitize calls where a kernel does something undefined: the launch ends with the file and the line.
//
// The functions and the structs are those that g++'s code expects (libsanitizer/ubsan in its sources); its own library,
// which would only print, is not linked.
#pragma once
#include "fibers.h"

namespace emulator {
struct Site {
    const char *file;
    unsigned line, column;
};
struct Type {
    unsigned short kind, info;
    char name[1];
};
struct Mismatch {
    Site at;
    const Type *type;
    unsigned char log_alignment, access;
};

// Not `fail` alone: the code that follows would go on with what it has.
template <class... A> [[noreturn, gnu::cold]] void undefined(const Site &at, const char *what, A... values) {
    char text[256];
    snprintf(text, sizeof text, what, values...);
    fail("thread %d: %s:%u: %s", (int)(worker->current - worker->fibers), at.file, at.line, text);
    siglongjmp(worker->escape, 1);
}
}  // namespace emulator

extern "C" {
#define ON(name, ...) [[noreturn, gnu::cold, gnu::visibility("hidden")]] inline void __ubsan_handle_##name(__VA_ARGS__)
#define KEPT __attribute__((used))
KEPT ON(type_mismatch_v1, const emulator::Mismatch *m, void *address) {
    emulator::undefined(m->at, "%s at %p, which is not aligned to %d bytes", m->type->name, address, 1 << m->log_alignment);
}
KEPT ON(add_overflow, const emulator::Site *at, void *, void *) { emulator::undefined(*at, "a sum overflows"); }
KEPT ON(sub_overflow, const emulator::Site *at, void *, void *) { emulator::undefined(*at, "a difference overflows"); }
KEPT ON(mul_overflow, const emulator::Site *at, void *, void *) { emulator::undefined(*at, "a product overflows"); }
KEPT ON(negate_overflow, const emulator::Site *at, void *) { emulator::undefined(*at, "a negation overflows"); }
KEPT ON(divrem_overflow, const emulator::Site *at, void *, void *) { emulator::undefined(*at, "a quotient overflows"); }
KEPT ON(out_of_bounds, const emulator::Site *at, void *index) {
    emulator::undefined(*at, "index %d of an array of a thread is outside of it", (int)(intptr_t)index);
}
KEPT ON(shift_out_of_bounds, const emulator::Site *at, void *, void *) { emulator::undefined(*at, "a shift by too many bits"); }
#undef ON
#undef KEPT
}
