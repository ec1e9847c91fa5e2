// CUDA C++ on the CPU: what a kernel's source needs so that g++ compiles it.
//
// Differences from nvcc that a source must allow for:
// - `extern __shared__ T name[];` must become `T* const name = (T*)emulated::dynamic_shared;`.
//   The emulated NVRTC does that; a plain C++ test does it by sed.
// - The source must lie in an anonymous namespace if a template has a static shared array.
// - __CUDA_ARCH__ is not defined. Multiplications and additions are not contracted to fused operations.
// - Matrix instructions and asynchronous copies are the functions of matrix.h, not inline PTX.
#pragma once

#include <assert.h>
#include <float.h>
#include <limits.h>
#include <math.h>

#include <cmath>
#include <type_traits>

#include "fibers.h"
#include "launch.h"
#include "matrix.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("emulated_shared")))
#define __constant__ __attribute__((used))
#define CUDART_INF_F HUGE_VALF

#undef assert
#define assert(condition) ((condition) ? void() : emulated::fail("assertion failed: " #condition))

#define EMULATED_VECTOR(T, name, align)                                     \
    struct __align__(align) name##2 { T x, y; };                            \
    struct name##3 { T x, y, z; };                                          \
    struct __align__(2 * align > 16 ? 16 : 2 * align) name##4 { T x, y, z, w; }; \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }       \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 emulated_uint3  // fibers.h defines its own
EMULATED_VECTOR(char, char, 2)
EMULATED_VECTOR(unsigned char, uchar, 2)
EMULATED_VECTOR(short, short, 4)
EMULATED_VECTOR(unsigned short, ushort, 4)
EMULATED_VECTOR(int, int, 8)
EMULATED_VECTOR(unsigned, uint, 8)
EMULATED_VECTOR(float, float, 8)
EMULATED_VECTOR(double, double, 16)
EMULATED_VECTOR(long long, longlong, 16)
EMULATED_VECTOR(unsigned long long, ulonglong, 16)
#undef uint3

// Barriers and warp functions.

static inline void __syncthreads() { emulated::barrier(0); }
static inline int __syncthreads_count(int p) { return emulated::barrier(p != 0); }
static inline int __syncthreads_or(int p) { return emulated::barrier(p != 0) != 0; }
static inline int __syncthreads_and(int p) { return emulated::barrier(p == 0) == 0; }
static inline void __syncwarp(unsigned mask = ~0u) { emulated::meet(mask, nullptr, nullptr); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __trap() { emulated::fail("__trap"); }

namespace emulated {

template <class T>
struct Exchange {
    T value;
    int source;
    T result;
};

// Gives each lane the value of its source lane.
template <class T>
void exchange(void** lane_arguments, unsigned lanes) {
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
        Exchange<T>& own = *static_cast<Exchange<T>*>(lane_arguments[__builtin_ctz(rest)]);
        if (!(lanes >> own.source & 1)) fail("a shuffle reads lane %d, which does not take part", own.source);
        own.result = static_cast<Exchange<T>*>(lane_arguments[own.source])->value;
    }
}

// A source outside [lowest, highest] gives the lane its own value.
template <class T>
T shuffle(unsigned mask, T value, int source, int lowest, int highest) {
    Exchange<T> own = {value, source < lowest || source > highest ? int(now.lane) : source, value};
    meet(mask, exchange<T>, &own);
    return own.result;
}

// The first lane of the segment that the running lane is in.
static int segment(int width) { return int(now.lane) & -width; }

struct Vote {
    bool value;
    unsigned result;
};

static void vote(void** lane_arguments, unsigned lanes) {
    unsigned ballot = 0;
    for (unsigned rest = lanes; rest; rest &= rest - 1)
        ballot |= unsigned(static_cast<Vote*>(lane_arguments[__builtin_ctz(rest)])->value) << __builtin_ctz(rest);
    for (unsigned rest = lanes; rest; rest &= rest - 1)
        static_cast<Vote*>(lane_arguments[__builtin_ctz(rest)])->result = ballot;
}

template <class T, class F>
T exchange_at(T* address, F change) {
    T old = *address;
    *address = change(old);
    return old;
}

}  // namespace emulated

template <class T>
static T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emulated::shuffle(mask, value, emulated::segment(width) + (source & (width - 1)), 0, 31);
}
template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    int highest = emulated::segment(width) + width - 1;
    return emulated::shuffle(mask, value, int(emulated::now.lane) ^ lane_mask, 0, highest);
}
template <class T>
static T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int highest = emulated::segment(width) + width - 1;
    return emulated::shuffle(mask, value, int(emulated::now.lane + delta), 0, highest);
}
template <class T>
static T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emulated::shuffle(mask, value, int(emulated::now.lane - delta), emulated::segment(width), 31);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emulated::Vote own = {predicate != 0, 0};
    emulated::meet(mask, emulated::vote, &own);
    return own.result;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
static inline unsigned __activemask() { return ~emulated::now.warps[emulated::now.warp].exited; }

// Atomics: no other thread runs meanwhile.

#define EMULATED_ATOMIC(name, expression)                                          \
    template <class T>                                                             \
    static T name(T* address, std::common_type_t<T> value) {                       \
        return emulated::exchange_at(address, [=](T old) -> T { return expression; }); \
    }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMax, old < value ? value : old)
EMULATED_ATOMIC(atomicMin, value < old ? value : old)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicAnd, old & value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
template <class T>
static T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
    return emulated::exchange_at(address, [=](T old) { return old == compare ? value : old; });
}

// Arithmetic.

// Operands of mixed types are converted to the type of their sum, as in nvcc's overloads; a number wins over a NaN.
template <class A, class B>
static auto min(A a, B b) {
    using T = decltype(a + b);
    if constexpr (std::is_floating_point_v<T>) return T(std::fmin(T(a), T(b)));
    else return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B>
static auto max(A a, B b) {
    using T = decltype(a + b);
    if constexpr (std::is_floating_point_v<T>) return T(std::fmax(T(a), T(b)));
    else return T(a) < T(b) ? T(b) : T(a);
}

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// These are macros, because the C library has functions of these names.
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }

template <class To, class From>
static To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }

static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
static inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
static inline int __float2int_rz(float x) { return int(x); }
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned x) { return float(x); }

template <class T>
static T __ldg(const T* address) { return *address; }
template <class T>
static T __ldcs(const T* address) { return *address; }
template <class T>
static T __ldcg(const T* address) { return *address; }
template <class T>
static void __stcs(T* address, T value) { *address = value; }
template <class T>
static void __stcg(T* address, T value) { *address = value; }

namespace emulated {

// Calls a kernel with the arguments that were passed to cuLaunchKernel.
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), const char* name, const EmulatedShape& shape, void** arguments) {
    size_t i = 0;
    for (bool is_pointer : {std::is_pointer_v<A>...}) {
        void* argument = arguments[i++];
        if (is_pointer && shape.use) shape.use(*static_cast<void**>(argument), shape.stream, name);
    }
    emulated_launch(shape, [=] { call(kernel, arguments, std::index_sequence_for<A...>()); }, name);
}

}  // namespace emulated
