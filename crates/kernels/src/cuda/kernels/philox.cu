// Random numbers: the dropout of an adapter's input, which multiplies each feature by 0 or 1 / (1 - p), drawn by token,
// module and feature; and random weights for measurements.

// Philox 4x32-10 (Salmon et al., SC 2011), as in philox.rs.
__device__ inline uint4 philox(unsigned long long key, uint4 c) {
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        unsigned h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// A thread's four features of a row, each multiplied by its drawn factor.
template <class T>
__device__ inline bool dropped(Four& four, long long& first, const T* x, const unsigned long long* keys, int module,
                               float p, int width, int rows) {
    int fours = (width + 3) / 4;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)rows * fours) return false;
    int row = i / fours, part = i % fours;
    first = (long long)row * width + 4 * part;
    four = load_four(x, first, (long long)(row + 1) * width);
    uint4 words = philox(keys[row], make_uint4(part, module, 0, 0));
    unsigned word[4] = {words.x, words.y, words.z, words.w};
    for (int k = 0; k < 4; k++) {
        bool is_dropped = (word[k] >> 8) * (1.0f / (1 << 24)) < p;
        four.x[k] *= is_dropped ? 0.0f : 1.0f / (1.0f - p);
    }
    return true;
}

// y = drop(x).
template <class T>
__device__ inline void dropout(T* y, const T* x, const unsigned long long* keys, int module, float p, int width,
                               int rows) {
    Four four;
    long long i;
    if (dropped(four, i, x, keys, module, p, width, rows)) store_four(y, i, i / width * width + width, four);
}

// to += drop(x).
template <class T>
__device__ inline void dropout_add(T* to, const float* x, const unsigned long long* keys, int module, float p,
                                   int width, int rows) {
    Four four;
    long long i;
    if (!dropped(four, i, x, keys, module, p, width, rows)) return;
    long long end = i / width * width + width;
    Four sum = load_four(to, i, end);
    for (int k = 0; k < 4; k++) sum.x[k] += four.x[k];
    store_four(to, i, end, sum);
}

#define DROPOUT_KERNELS(T, SUFFIX)                                                                                    \
    extern "C" __global__ void dropout_##SUFFIX(T* y, const T* x, const unsigned long long* keys, int module,         \
                                                float p, int width, int rows) {                                       \
        dropout(y, x, keys, module, p, width, rows);                                                                  \
    }                                                                                                                 \
    extern "C" __global__ void dropout_add_##SUFFIX(T* to, const float* x, const unsigned long long* keys,            \
                                                    int module, float p, int width, int rows) {                       \
        dropout_add(to, x, keys, module, p, width, rows);                                                             \
    }

DROPOUT_KERNELS(float, f32)
DROPOUT_KERNELS(bf16, bf16)

// Normally distributed numbers with the given deviation, four per thread (Box and Muller).
extern "C" __global__ void fill_normal_bf16(bf16* to, unsigned long long seed, float deviation, long long n) {
    long long i = first_of_thread();
    if (i >= n) return;
    uint4 words = philox(seed, make_uint4((unsigned)(i / 4), (unsigned)(i / 4 >> 32), 0, 0));
    unsigned word[4] = {words.x, words.y, words.z, words.w};
    Four four;
    for (int k = 0; k < 4; k += 2) {
        // u is within (0, 1].
        float u = ((word[k] >> 8) + 1) * (1.0f / (1 << 24)), angle = 6.2831853f * (word[k + 1] >> 8) / (1 << 24);
        float radius = deviation * sqrtf(-2.0f * logf(u));
        four.x[k] = radius * cosf(angle), four.x[k + 1] = radius * sinf(angle);
    }
    store_four(to, i, n, four);
}
