// NF4: 4-bit codes, two a byte with the first one in the upper half, and a scale for each 64 numbers.

__constant__ float nf4_codebook[16] = {
    -1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f,  -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,    0.1609302f,   0.2461123f,   0.33791524f,  0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

// A number rounded to the format that it had before it was quantised: 0 for f32, 1 for bf16, 2 for f16.
__device__ inline float nf4_rounded(float x, int original) {
    if (original == 0) return x;
    if (original == 1) return to_float(from_float<bf16>(x));
    float size = fabsf(x);
    // The fractions of f16's subnormal numbers count in steps of 2^-24.
    if (size < 6.103515625e-5f) return rintf(x * 16777216.0f) / 16777216.0f;
    unsigned bits = __float_as_uint(x);
    if (!(size < __uint_as_float(0x7f800000u))) return x;
    float nearest = __uint_as_float((bits + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u);
    return fabsf(nearest) < 65536.0f ? nearest : copysignf(__uint_as_float(0x7f800000u), x);
}

// to[i] = rounded(codebook[code_i] * scale); a scale is absmax[block], or map[code of the block] * absmax + offset. A
// thread takes eight numbers, which lie in one block.
template <class T>
__device__ inline void dequantize_nf4(T* to, const unsigned* codes, const float* absmax, const unsigned char* nested,
                                      const float* map, float offset, int original, long long n) {
    // Constant memory answers one address at a time, and the threads of a warp ask for different ones.
    __shared__ float codebook[16];
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_codebook[threadIdx.x];
    __syncthreads();
    long long word = (long long)blockIdx.x * blockDim.x + threadIdx.x, i = 8 * word;
    if (i >= n) return;
    long long block = i / 64;
    // Sums and products are rounded one by one, as on the CPU.
    float scale = nested ? __fadd_rn(__fmul_rn(map[nested[block]], absmax[block / 256]), offset) : absmax[block];
    unsigned eight = codes[word];
    for (int half = 0; half < 2; half++) {
        Four four;
        for (int k = 0; k < 4; k++) {
            int byte = 2 * half + k / 2, shift = 8 * byte + (k % 2 == 0 ? 4 : 0);
            four.x[k] = nf4_rounded(__fmul_rn(codebook[eight >> shift & 15u], scale), original);
        }
        if (i + 4 * half < n) store_four(to, i + 4 * half, n, four);
    }
}

#define NF4_KERNELS(T, SUFFIX)                                                                                        \
    extern "C" __global__ void dequantize_nf4_##SUFFIX(T* to, const unsigned* codes, const float* absmax,             \
                                                       const unsigned char* nested, const float* map, float offset,   \
                                                       int original, long long n) {                                   \
        dequantize_nf4(to, codes, absmax, nested, map, offset, original, n);                                          \
    }

NF4_KERNELS(float, f32)
NF4_KERNELS(bf16, bf16)
