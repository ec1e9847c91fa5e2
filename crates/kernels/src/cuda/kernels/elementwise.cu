// Element-wise operations. A thread takes four neighbouring numbers, in one access if they are aligned.

struct Four {
    float x[4];
};

// Numbers i to i + 3 of n; numbers beyond the end are 0.
__device__ inline Four load_four(const float* x, long long i, long long n) {
    Four four = {{0, 0, 0, 0}};
    if (i + 4 <= n && ((size_t)(x + i) & 15) == 0) {
        float4 v = *(const float4*)(x + i);
        four.x[0] = v.x, four.x[1] = v.y, four.x[2] = v.z, four.x[3] = v.w;
    } else {
        for (int k = 0; k < 4 && i + k < n; k++) four.x[k] = x[i + k];
    }
    return four;
}

__device__ inline Four load_four(const bf16* x, long long i, long long n) {
    Four four = {{0, 0, 0, 0}};
    if (i + 4 <= n && ((size_t)(x + i) & 7) == 0) {
        uint2 v = *(const uint2*)(x + i);
        four.x[0] = __uint_as_float(v.x << 16), four.x[1] = __uint_as_float(v.x & 0xffff0000u);
        four.x[2] = __uint_as_float(v.y << 16), four.x[3] = __uint_as_float(v.y & 0xffff0000u);
    } else {
        for (int k = 0; k < 4 && i + k < n; k++) four.x[k] = to_float(x[i + k]);
    }
    return four;
}

__device__ inline void store_four(float* y, long long i, long long n, const Four& four) {
    if (i + 4 <= n && ((size_t)(y + i) & 15) == 0) {
        *(float4*)(y + i) = make_float4(four.x[0], four.x[1], four.x[2], four.x[3]);
    } else {
        for (int k = 0; k < 4 && i + k < n; k++) y[i + k] = four.x[k];
    }
}

__device__ inline void store_four(bf16* y, long long i, long long n, const Four& four) {
    if (i + 4 <= n && ((size_t)(y + i) & 7) == 0) {
        *(uint2*)(y + i) = make_uint2(pack_bf16(four.x[0], four.x[1]), pack_bf16(four.x[2], four.x[3]));
    } else {
        for (int k = 0; k < 4 && i + k < n; k++) y[i + k] = from_float<bf16>(four.x[k]);
    }
}

__device__ inline long long first_of_thread() { return 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x); }

extern "C" __global__ void add_f32(float* to, const float* from, long long n) {
    long long i = first_of_thread();
    if (i >= n) return;
    Four a = load_four(to, i, n), b = load_four(from, i, n);
    for (int k = 0; k < 4; k++) a.x[k] += b.x[k];
    store_four(to, i, n, a);
}

template <class T, class U>
__device__ inline void cast(U* to, const T* from, long long n) {
    long long i = first_of_thread();
    if (i < n) store_four(to, i, n, load_four(from, i, n));
}

extern "C" __global__ void cast_f32_bf16(bf16* to, const float* from, long long n) { cast(to, from, n); }
extern "C" __global__ void cast_bf16_f32(float* to, const bf16* from, long long n) { cast(to, from, n); }

// h = gate sigmoid(gate) up.
template <class T>
__device__ inline void swiglu(T* h, const T* gate, const T* up, long long n) {
    long long i = first_of_thread();
    if (i >= n) return;
    Four g = load_four(gate, i, n), u = load_four(up, i, n);
    for (int k = 0; k < 4; k++) g.x[k] = g.x[k] / (1.0f + expf(-g.x[k])) * u.x[k];
    store_four(h, i, n, g);
}

// Overwrites gate and up with their gradients.
template <class T>
__device__ inline void swiglu_backward(T* gate, T* up, const T* dh, long long n) {
    long long i = first_of_thread();
    if (i >= n) return;
    Four g = load_four(gate, i, n), u = load_four(up, i, n), d = load_four(dh, i, n);
    for (int k = 0; k < 4; k++) {
        float s = 1.0f / (1.0f + expf(-g.x[k])), silu = g.x[k] * s;
        g.x[k] = d.x[k] * u.x[k] * (s + silu * (1.0f - s));
        u.x[k] = d.x[k] * silu;
    }
    store_four(gate, i, n, g);
    store_four(up, i, n, u);
}

// Rotates features i and i + half of every head; x [rows, heads * 2 * half], cos and sin [rows, half]. One block per
// row.
template <class T>
__device__ inline void rope(T* x, const float* cos, const float* sin, int heads, int half, float sign) {
    x += (long long)blockIdx.x * heads * 2 * half;
    cos += (long long)blockIdx.x * half, sin += (long long)blockIdx.x * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        int head = i / half, feature = i % half;
        T* low = x + head * 2 * half + feature;
        float a = to_float(low[0]), b = to_float(low[half]), c = cos[feature], s = sign * sin[feature];
        low[0] = from_float<T>(a * c - b * s);
        low[half] = from_float<T>(b * c + a * s);
    }
}

// y += bias in every row.
template <class T>
__device__ inline void add_bias(T* y, const float* bias, int width, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = from_float<T>(to_float(y[i]) + bias[i % width]);
}

#define ELEMENTWISE_KERNELS(T, SUFFIX)                                                                                \
    extern "C" __global__ void swiglu_##SUFFIX(T* h, const T* gate, const T* up, long long n) {                       \
        swiglu(h, gate, up, n);                                                                                       \
    }                                                                                                                 \
    extern "C" __global__ void swiglu_backward_##SUFFIX(T* gate, T* up, const T* dh, long long n) {                   \
        swiglu_backward(gate, up, dh, n);                                                                             \
    }                                                                                                                 \
    extern "C" __global__ void rope_##SUFFIX(T* x, const float* cos, const float* sin, int heads, int half,           \
                                             float sign) {                                                            \
        rope(x, cos, sin, heads, half, sign);                                                                         \
    }                                                                                                                 \
    extern "C" __global__ void add_bias_##SUFFIX(T* y, const float* bias, int width, long long n) {                   \
        add_bias(y, bias, width, n);                                                                                  \
    }

ELEMENTWISE_KERNELS(float, f32)
ELEMENTWISE_KERNELS(bf16, bf16)
