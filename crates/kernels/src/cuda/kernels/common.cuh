// What all kernels share: numbers in bf16, and sums over a warp or a block. A bf16 is the upper half of an f32;
// conversions round to nearest even, and any NaN becomes 0x7fff. Each part in PTX has a plain equivalent for the
// emulator, with the same bits.

typedef unsigned short bf16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

template <class T>
__device__ inline T from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
    return x;
}

template <>
__device__ inline bf16 from_float<bf16>(float x) {
#ifdef __CUDA_ARCH__
    bf16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// Packs two numbers into one word, as tensor cores expect them.
__device__ inline unsigned pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return (unsigned)from_float<bf16>(low) | (unsigned)from_float<bf16>(high) << 16;
#endif
}

// Sums over all 32 threads of a warp; every thread gets the result, which is always added in the same order.
template <class T>
__device__ inline T warp_sum(T x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// Sums over a one-dimensional block of whole warps, at most 1024 threads. All threads must call it.
template <class T>
__device__ inline T block_sum(T x) {
    __shared__ T sums[32];
    x = warp_sum(x);
    // Other threads may still be reading an earlier call's results.
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = sums[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) sum += sums[warp];
    return sum;
}
