// Runs the threads of a CUDA grid on one CPU thread: a block's threads are fibers that switch at
// barriers and warp functions, and blocks run one after another.
//
// EMULATED_CUDA_ORDER sets the order of threads between barriers, and of blocks: forward (default), reverse or
// shuffled. A result that depends on it reveals a race or a missing barrier.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <utility>
#include <vector>

#include "driver.h"
#ifndef __x86_64__
#define EMULATED_UCONTEXT  // the other way to switch stacks
#endif
#ifdef EMULATED_UCONTEXT
#include <ucontext.h>
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

// Static shared arrays lie in a section of their own, so that they can be filled with NaNs before each block.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_emulated_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_emulated_shared[];

namespace emulated {

constexpr size_t max_dynamic_shared = 227 * 1024, shared_guard = 4096, stack_bytes = 256 * 1024;
alignas(1024) static unsigned char dynamic_shared[max_dynamic_shared + shared_guard];

using WarpFunction = void (*)(void** lane_arguments, unsigned lanes);

// A copy from global to shared memory that its thread has not waited for.
struct PendingCopy {
    void* to;
    const void* from;
    unsigned group;
};

struct Lane {
    void* context;  // where the fiber continues; null before its first instruction
    char* stack;
    uint3 index;
    unsigned mask;  // of the warp function that the thread waits at
    WarpFunction function;
    void* arguments;
    unsigned copy_group;
    std::vector<PendingCopy> copies;
};

struct Warp {
    unsigned ready, waiting, at_barrier, exited;  // one bit per lane
};

enum class Order { forward, reverse, shuffled };

static struct {
    const char* kernel = "";
    void (*body)(void*);
    void* body_data;
    size_t shared_bytes;
    decltype(EmulatedShape::describe) describe;
    Order order;
    uint32_t random;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    std::vector<char*> free_stacks;
    char* left_stack = nullptr;  // of the last thread that ended; it may still be in use
    unsigned warp, lane;  // the thread that is running
    void* scheduler;      // where run_block continues
    void* left_context;   // of a thread that ended; it is never continued
    int barrier_count, barrier_result;
} now;

template <class... A>
[[noreturn]] static void fail(const char* format, A... values) {
    fprintf(stderr, "emulated CUDA: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", now.kernel,
            blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    if constexpr (sizeof...(A) == 0) fputs(format, stderr);
    else fprintf(stderr, format, values...);
    fputc('\n', stderr);
    abort();
}

static Lane& running() { return now.lanes[now.warp * 32 + now.lane]; }

static uint32_t next_random() {
    now.random ^= now.random << 13;
    now.random ^= now.random >> 17;
    return now.random ^= now.random << 5;
}

static void fiber_main();

#ifndef EMULATED_UCONTEXT
// Saves the callee-saved registers on the stack, stores the stack pointer and continues another fiber.
extern "C" void emulated_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emulated_switch, . - emulated_switch
)");

static void* new_context(char* stack) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes);
    memset(top - 8, 0, 8 * sizeof(void*));
    top[-2] = reinterpret_cast<void*>(&fiber_main);
    return top - 8;
}
#else
static void emulated_switch(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

static void* new_context(char* stack) {
    ucontext_t* context = reinterpret_cast<ucontext_t*>(stack + stack_bytes - 8192);
    getcontext(context);
    context->uc_stack = {.ss_sp = stack + 4096, .ss_flags = 0, .ss_size = stack_bytes - 16384};
    makecontext(context, fiber_main, 0);
    return context;
}
#endif

static char* take_stack() {
    if (now.free_stacks.empty()) {
        void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fail("no memory for the stack of a thread");
        mprotect(stack, 4096, PROT_NONE);
        return static_cast<char*>(stack);
    }
    char* stack = now.free_stacks.back();
    now.free_stacks.pop_back();
    return stack;
}

// The ready lane that runs next; `ready` is not zero.
static unsigned pick(unsigned ready) {
    if (now.order == Order::forward) return __builtin_ctz(ready);
    if (now.order == Order::reverse) return 31 - __builtin_clz(ready);
    unsigned turn = next_random() & 31;
    unsigned turned = turn ? ready >> turn | ready << (32 - turn) : ready;
    return (__builtin_ctz(turned) + turn) & 31;
}

static void enter(unsigned lane) {
    now.lane = lane;
    threadIdx = running().index;
}

// Continues the lane, or starts it on a stack of its own.
static void switch_to(void** from, unsigned lane) {
    enter(lane);
    Lane& next = running();
    if (!next.context) {
        next.stack = take_stack();
        next.context = new_context(next.stack);
    }
    emulated_switch(from, next.context);
}

// Switches from the running thread, which is not ready, to another thread of its warp or to the scheduler.
static __attribute__((noinline)) void yield() {
    void** from = &running().context;
    unsigned ready = now.warps[now.warp].ready;
    if (ready) switch_to(from, pick(ready));
    else emulated_switch(from, now.scheduler);
}

// Runs the warp function that `lane` waits at, once every lane of its mask has arrived or exited.
static bool complete(Warp& warp, unsigned lane) {
    Lane* lanes = &now.lanes[now.warp * 32];
    const Lane& caller = lanes[lane];
    unsigned wanted = caller.mask & ~warp.exited;
    if (wanted & ~warp.waiting) return false;
    void* arguments[32];
    for (unsigned rest = wanted; rest; rest &= rest - 1) {
        unsigned l = __builtin_ctz(rest);
        if (lanes[l].mask != caller.mask || lanes[l].function != caller.function) return false;
        arguments[l] = lanes[l].arguments;
    }
    if (caller.function) caller.function(arguments, wanted);
    warp.waiting &= ~wanted;
    warp.ready |= wanted;
    return true;
}

// Waits for the lanes of `mask`; the last one to arrive runs `function` over the arguments of all.
static __attribute__((noinline)) void meet(unsigned mask, WarpFunction function, void* arguments) {
    Warp& warp = now.warps[now.warp];
    unsigned bit = 1u << now.lane;
    if (!(mask & bit)) fail("a warp function's mask %#x leaves its own lane out", mask);
    Lane& lane = running();
    lane.mask = mask;
    lane.function = function;
    lane.arguments = arguments;
    warp.waiting |= bit;
    if (complete(warp, now.lane)) return;
    warp.ready &= ~bit;
    yield();
}

static __attribute__((noinline)) int barrier(int value) {
    Warp& warp = now.warps[now.warp];
    now.barrier_count += value;
    warp.at_barrier |= 1u << now.lane;
    warp.ready &= ~(1u << now.lane);
    yield();
    return now.barrier_result;
}

static void exit_lane() {
    Warp& warp = now.warps[now.warp];
    warp.ready &= ~(1u << now.lane);
    warp.exited |= 1u << now.lane;
    for (unsigned rest = warp.waiting; rest; rest &= rest - 1) {
        unsigned lane = __builtin_ctz(rest);
        if (warp.waiting >> lane & 1) complete(warp, lane);
    }
}

// Runs threads from their first instruction, one after another on the same stack.
static void fiber_main() {
    for (;;) {
        now.body(now.body_data);
        char* stack = running().stack;
        exit_lane();
        unsigned ready = now.warps[now.warp].ready;
        unsigned lane = ready ? pick(ready) : 0;
        if (ready && !now.lanes[now.warp * 32 + lane].context) {
            enter(lane);
            running().stack = stack;
            running().context = stack;
            continue;
        }
        if (now.left_stack) now.free_stacks.push_back(now.left_stack);
        now.left_stack = stack;
        if (ready) switch_to(&now.left_context, lane);
        else emulated_switch(&now.left_context, now.scheduler);
    }
}

static unsigned block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

static void index_lanes() {
    now.lanes.resize((block_threads() + 31) / 32 * 32);
    for (unsigned i = 0; i < block_threads(); i++)
        now.lanes[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
}

static void begin_block() {
    unsigned threads = block_threads();
    now.warps.assign((threads + 31) / 32, Warp{~0u, 0, 0, 0});
    if (threads % 32) now.warps.back().ready = (1u << threads % 32) - 1;
    now.warps.back().exited = ~now.warps.back().ready;
    for (unsigned i = 0; i < threads; i++) {
        Lane& lane = now.lanes[i];
        lane.context = nullptr;
        lane.copy_group = 0;
        if (!lane.copies.empty()) lane.copies.clear();
    }
    now.barrier_count = 0;
    memset(dynamic_shared, 0xff, now.shared_bytes + shared_guard);
    if (__start_emulated_shared)
        memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
}

static void end_block() {
    const unsigned char* guard = dynamic_shared + now.shared_bytes;
    if (guard[0] == 0xff && !memcmp(guard, guard + 1, shared_guard - 1)) return;
    for (size_t i = 0; i < shared_guard; i++)
        if (guard[i] != 0xff)
            fail("a write %zu bytes past the %zu bytes of dynamic shared memory", i, now.shared_bytes);
}

// The index of the warp or block, out of `count`, that runs in this turn.
static size_t in_order(size_t turn, size_t count, size_t shift) {
    if (now.order == Order::forward) return turn;
    if (now.order == Order::reverse) return count - 1 - turn;
    size_t stride = count % 7919 ? 7919 : 7907;  // primes, so that every index occurs once
    return (turn * stride + shift) % count;
}

static void run_block() {
    begin_block();
    for (;;) {
        unsigned shift = next_random();
        for (unsigned turn = 0; turn < now.warps.size(); turn++) {
            now.warp = in_order(turn, now.warps.size(), shift);
            while (unsigned ready = now.warps[now.warp].ready) switch_to(&now.scheduler, pick(ready));
        }
        unsigned waiting = 0, at_barrier = 0;
        for (Warp& warp : now.warps) {
            waiting |= warp.waiting;
            at_barrier |= warp.at_barrier;
            warp.ready = warp.at_barrier;
            warp.at_barrier = 0;
        }
        if (waiting) fail("deadlock: lanes wait at a warp function that the others of its mask never call");
        if (!at_barrier) break;
        now.barrier_result = now.barrier_count;
        now.barrier_count = 0;
    }
    end_block();
}

}  // namespace emulated
