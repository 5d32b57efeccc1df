// Executes a grid: each CUDA thread is a fiber, a warp is 32 of them, an OS thread runs one block at a time.
//
// A fiber runs until it has to wait: for its block (__syncthreads), for the lanes of its warp (shuffles, __syncwarp),
// or for a condition that another thread makes true (spin). The scheduler is greedy on purpose: it runs one warp until
// every lane of it waits for the block or has ended, then the next one. So a missing barrier shows: what one warp should
// have waited for is not yet there, and running the warps in another order gives another result.
//
//     scheduler (per block)               fiber 0            fiber 1          ...
//        resume ----------------------->  runs
//        <----- switch: WARP, mask -----  __shfl_sync
//        resume --------------------------------------->     runs
//        <-------------------------------------------        __shfl_sync
//        every lane of the mask is there: results are snapped, all of them may run again
//
// Dynamic shared memory is filled with 0xff before each block, NaN in every float type, and ends at a page that may not
// be touched. Stacks lie between such pages too. A stray access, a barrier that part of a block never reaches, and
// lanes that meet in different collectives end the launch with a message; nothing hangs and nothing aborts. So do an
// access that is not aligned to its type's size (a GPU faults, this CPU would not) and an int that overflows, which
// undefined.h shows.
#pragma once
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <utility>

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;

// Saves the registers that a call preserves, and the stack pointer; continues on another stack.
extern "C" void emulator_switch(void **save, void *load);
asm(".text\n.type emulator_switch,@function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emulator_switch,.-emulator_switch\n");

namespace emulator {

constexpr int WARP = 32, SLOT = 64, MAX_THREADS = 1024, MAX_COPIES = 512, PAGE = 4096;
constexpr size_t STACK = 60 * 1024, ROOM = STACK + PAGE;

enum State : uint8_t { RUNS, AT_BLOCK, AT_WARP, SPINS, ENDED };
enum Collective : uint8_t { SYNC, SHUFFLE, BALLOT, MATRIX };

// One asynchronous copy that has not landed, and a position in a thread's sequence of groups.
struct Copy { void *to; const void *from; int bytes; bool inside; unsigned group; };

struct Fiber {
    void *stack;
    State state;
    Collective collective;
    unsigned mask, present;  // lanes of its last collective: asked for, taken part
    uint3 index;
    int lane, warp;
    Copy copies[MAX_COPIES];
    int pending;
    unsigned groups;  // committed
};

struct Warp {
    alignas(16) unsigned char given[WARP][SLOT], seen[WARP][SLOT];
};

// How a launch is executed; set by the driver.
struct Order {
    unsigned warps;  // 0: forward, 1: reverse (lanes too), else the seed of a shuffle
    int eager;       // asynchronous copies land at once, instead of as late as the waits allow
};

struct Worker {
    Fiber *fibers;  // MAX_THREADS
    Warp *warps;
    char *stacks, *shared_pages;
    size_t shared_room;
    unsigned char *shared;
    void *scheduler;
    Fiber *current;
    uint3 block, block_size, grid;
    Order order;
    int sequence[MAX_THREADS / WARP];
    int threads;
    bool inside;  // a fiber is running
    sigjmp_buf escape;
    Worker *next;  // in the list of idle ones
    unsigned long long progress;
    void (*body)(void *);
    void *arguments;
    char message[512];
};

inline thread_local Worker *worker;
inline Fiber &self() { return *worker->current; }

inline void pause(State state) {
    Fiber *f = worker->current;
    f->state = state;
    emulator_switch(&f->stack, worker->scheduler);
}

inline void land(const Copy &c) {
    if (c.inside) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
}

// Lands every copy whose group is at most `group`.
inline void land_up_to(Fiber &f, unsigned group) {
    int kept = 0;
    for (int i = 0; i < f.pending; i++)
        if (f.copies[i].group <= group) land(f.copies[i]);
        else f.copies[kept++] = f.copies[i];
    f.pending = kept;
}
inline void entry() {
    worker->body(worker->arguments);
    land_up_to(self(), ~0u);  // a thread that ends leaves its copies to land
    worker->current->state = ENDED;
    emulator_switch(&worker->current->stack, worker->scheduler);
    __builtin_unreachable();
}

template <class... A> [[gnu::cold]] void fail(const char *format, A... values) {
    Worker *w = worker;
    const int n = snprintf(w->message, sizeof w->message, "block (%u, %u, %u): ", w->block.x, w->block.y, w->block.z);
    snprintf(w->message + n, sizeof w->message - n, format, values...);
}

// A warp's lanes that wait in collectives: those of a mask go on when all of them that have not ended are there.
// Called when no lane of the warp can run. True where some may run again; a message where they never can.
inline bool release(Worker *w, int warp, int first, int last) {
    Fiber *lanes = w->fibers + first;
    bool released = false;
    for (int i = 0; i < last - first; i++) {
        if (lanes[i].state != AT_WARP) continue;
        const unsigned mask = lanes[i].mask;
        bool complete = true;
        for (int j = 0; j < last - first && complete; j++)
            if (mask >> j & 1)
                complete = lanes[j].state == ENDED || (lanes[j].state == AT_WARP && lanes[j].mask == mask);
        if (!complete) continue;
        for (int j = 0; j < last - first; j++) {
            if (!(mask >> j & 1) || lanes[j].state == ENDED) continue;
            if (lanes[j].collective != lanes[i].collective) {
                fail("warp %d: lanes %d and %d meet in different collectives", warp, i, j);
                return false;
            }
        }
        unsigned present = 0;
        for (int j = 0; j < last - first; j++)
            if ((mask >> j & 1) && lanes[j].state != ENDED) present |= 1u << j;
        for (int j = 0; j < last - first; j++) {
            if (!(present >> j & 1)) continue;
            memcpy(w->warps[warp].seen[j], w->warps[warp].given[j], SLOT);
            lanes[j].state = RUNS;
            lanes[j].present = present;
        }
        released = true;
    }
    return released;
}

inline void explain_deadlock(Worker *w) {
    int counts[5] = {};
    int example[5] = {};
    for (int i = w->threads - 1; i >= 0; i--) counts[w->fibers[i].state]++, example[w->fibers[i].state] = i;
    char text[320];
    int n = 0;
    const char *names[5] = {"running", "at __syncthreads", "in a warp's collective", "spinning", "ended"};
    for (int s = 0; s < 5; s++)
        if (counts[s])
            n += snprintf(text + n, sizeof text - n, "%s%d threads %s (thread %d)", n ? ", " : "", counts[s], names[s], example[s]);
    fail("deadlock, a barrier that some never reach: %s", text);
}

// Runs one block to its end; false with a message where it cannot.
inline bool run_block(Worker *w) {
    memset(w->shared, 0xff, w->shared_room);
    for (int i = 0; i < w->threads; i++) {
        Fiber &f = w->fibers[i];
        void **top = (void **)(w->stacks + (i + 1) * ROOM - 64);
        top[0] = (void *)entry;
        f.stack = top - 6;  // six registers are popped first; their values do not matter
        f.state = RUNS;
        f.pending = 0, f.groups = 0;
    }
    const int warps = (w->threads + WARP - 1) / WARP;
    for (;;) {
        const unsigned long long before = w->progress;
        for (int s = 0; s < warps; s++) {
            const int warp = w->sequence[s], first = warp * WARP, last = first + WARP < w->threads ? first + WARP : w->threads;
            do {
                for (int j = first; j < last; j++) {
                    Fiber &f = w->fibers[w->order.warps == 1 ? first + last - 1 - j : j];
                    if (f.state != RUNS) continue;
                    w->current = &f;
                    w->inside = true;
                    emulator_switch(&w->scheduler, f.stack);
                    w->inside = false;
                    if (w->message[0]) return false;
                    w->progress += f.state != SPINS;
                }
            } while (release(w, warp, first, last));
            if (w->message[0]) return false;
        }
        int waiting = 0, alive = 0, spinning = 0;
        for (int i = 0; i < w->threads; i++) {
            alive += w->fibers[i].state != ENDED;
            waiting += w->fibers[i].state == AT_BLOCK;
            spinning += w->fibers[i].state == SPINS;
        }
        if (!alive) return true;
        const bool all = waiting == alive;
        if (!all && (!spinning || w->progress == before)) {
            explain_deadlock(w);
            return false;
        }
        for (int i = 0; i < w->threads; i++)
            if (w->fibers[i].state == SPINS || (all && w->fibers[i].state == AT_BLOCK)) w->fibers[i].state = RUNS;
    }
}

// ---- workers: one an OS thread, kept between launches because their stacks are expensive to map

inline pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
inline Worker *idle;

inline Worker *acquire() {
    pthread_mutex_lock(&idle_lock);
    Worker *w = idle;
    if (w) idle = w->next;
    pthread_mutex_unlock(&idle_lock);
    if (w) return w;
    w = (Worker *)calloc(1, sizeof(Worker));
    w->fibers = (Fiber *)calloc(MAX_THREADS, sizeof(Fiber));
    w->warps = (Warp *)aligned_alloc(alignof(Warp), sizeof(Warp) * (MAX_THREADS / WARP));
    w->stacks = (char *)mmap(nullptr, MAX_THREADS * ROOM, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int i = 0; i < MAX_THREADS; i++) mprotect(w->stacks + i * ROOM, PAGE, PROT_NONE);  // a stack grows down to it
    w->shared_pages = (char *)mmap(nullptr, (256 << 10) + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(w->shared_pages + (256 << 10), PAGE, PROT_NONE);
    return w;
}

inline void give_back(Worker *w) {
    pthread_mutex_lock(&idle_lock);
    w->next = idle;
    idle = w;
    pthread_mutex_unlock(&idle_lock);
}

// ---- stray accesses

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE};
inline struct sigaction previous[3];

inline void on_fault(int signal, siginfo_t *info, void *context) {
    Worker *w = worker;
    if (w && w->inside) {
        const int thread = (int)(w->current - w->fibers);
        const char *what = "an access outside of an array";
        if (signal == SIGFPE) what = "a division by zero";
        char *p = (char *)info->si_addr;
        if (p >= w->shared_pages && p < w->shared_pages + (256 << 10) + PAGE) what = "an access outside of shared memory";
        if (p >= w->stacks && p < w->stacks + MAX_THREADS * ROOM) what = "a stack overflow";
        fail("thread %d: %s, at %p", thread, what, info->si_addr);
        siglongjmp(w->escape, 1);
    }
    for (int i = 0; i < 3; i++)  // not ours: as before the launch
        if (FAULTS[i] == signal) sigaction(signal, &previous[i], nullptr);
    (void)context;
}

// ---- a launch

struct Job {
    void (*body)(void *);
    void *arguments;
    uint3 grid, block;
    size_t shared;
    Order order;
    long next_block;
    char *message;
    pthread_mutex_t lock;
};

inline void *work(void *argument) {
    Job &job = *(Job *)argument;
    Worker *w = acquire();
    worker = w;
    static thread_local char signal_stack[64 << 10];
    stack_t alternative = {}, before;
    alternative.ss_sp = signal_stack, alternative.ss_size = sizeof signal_stack;
    sigaltstack(&alternative, &before);
    w->grid = job.grid, w->block_size = job.block, w->order = job.order, w->message[0] = 0, w->inside = false;
    w->body = job.body, w->arguments = job.arguments;
    w->shared_room = (job.shared + 127) / 128 * 128;
    w->shared = (unsigned char *)w->shared_pages + (256 << 10) - w->shared_room;
    const int n = w->threads = (int)(job.block.x * job.block.y * job.block.z), warps = (n + WARP - 1) / WARP;
    for (int i = 0; i < n; i++) {
        Fiber &f = w->fibers[i];
        f.lane = i % WARP, f.warp = i / WARP;
        f.index = {i % job.block.x, i / job.block.x % job.block.y, i / (job.block.x * job.block.y)};
    }
    for (int i = 0; i < warps; i++) w->sequence[i] = job.order.warps == 1 ? warps - 1 - i : i;
    if (job.order.warps > 1) {
        unsigned random = job.order.warps;
        for (int i = warps - 1; i > 0; i--) {
            random = random * 1664525u + 1013904223u;
            std::swap(w->sequence[i], w->sequence[(random >> 8) % (i + 1)]);
        }
    }
    const long blocks = (long)job.grid.x * job.grid.y * job.grid.z;
    if (sigsetjmp(w->escape, 1) == 0)
        for (;;) {
            const long b = __atomic_fetch_add(&job.next_block, 1, __ATOMIC_RELAXED);
            if (b >= blocks) break;
            w->block = {unsigned(b % job.grid.x), unsigned(b / job.grid.x % job.grid.y), unsigned(b / ((long)job.grid.x * job.grid.y))};
            if (!run_block(w)) break;
        }
    if (w->message[0]) {
        __atomic_store_n(&job.next_block, blocks, __ATOMIC_RELAXED);
        pthread_mutex_lock(&job.lock);
        if (!job.message[0]) strcpy(job.message, w->message);
        pthread_mutex_unlock(&job.lock);
    }
    sigaltstack(&before, nullptr);
    worker = nullptr;
    give_back(w);
    return nullptr;
}

inline int run(Job &job, int os_threads) {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &action, &previous[i]);
    pthread_t others[64];
    const long blocks = (long)job.grid.x * job.grid.y * job.grid.z;
    int started = 0;
    while (started < os_threads - 1 && started < blocks - 1 && started < 63)
        if (pthread_create(&others[started], nullptr, work, &job)) break;
        else started++;
    work(&job);
    for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
    for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &previous[i], nullptr);
    return job.message[0] != 0;
}

template <class T> T value_at(const void *p) {  // kernel arguments may be unaligned
    T v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(value_at<std::decay_t<A>>(arguments[I])...);
}

// Launches a kernel as cuLaunchKernel does: an array of addresses of arguments. 0, or 1 with a message.
template <class... A>
int launch(void (*kernel)(A...), const unsigned *grid, const unsigned *block, size_t shared, void **arguments,
           const unsigned *order, int os_threads, char *message) {
    struct Bound { void (*kernel)(A...); void **arguments; } bound{kernel, arguments};
    Job job{[](void *b) { call(((Bound *)b)->kernel, ((Bound *)b)->arguments, std::index_sequence_for<A...>{}); },
            &bound, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared,
            {order[0], (int)order[1]}, 0, message, PTHREAD_MUTEX_INITIALIZER};
    message[0] = 0;
    return run(job, os_threads);
}

// Bytes that the launcher gave for each argument must be those that the kernel takes.
template <class... A> int sizes(void (*)(A...), size_t *out) {
    const size_t all[] = {sizeof(std::decay_t<A>)..., 0};
    memcpy(out, all, sizeof...(A) * sizeof(size_t));
    return sizeof...(A);
}

}  // namespace emulator
