// RMSNorm, y = g x / sqrt(mean(x^2) + eps): one warp per short row, such as a head's, and one block per wider row; and
// sums over rows, which the gradient of a gain or bias needs.

// The width of the widest short row.
constexpr int SHORT_WIDTH = 128;
// How many warps a block has, in every kernel here.
constexpr int NORM_WARPS = 8;

template <class T>
__device__ inline float inverse_rms(const T* x, int width, float eps) {
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = to_float(x[i]);
        sum += v * v;
    }
    return 1.0f / sqrtf(block_sum(sum) / width + eps);
}

template <class Y, class X>
__device__ inline void rms_norm(Y* y, const X* x, const float* gain, float eps, int width) {
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    float scale = inverse_rms(x, width, eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = from_float<Y>(to_float(x[i]) * scale * gain[i]);
}

// A lane's share of a short row: numbers 4 lane to 4 lane + 3 and the same 128 further on; 0 beyond the row's end.
struct ShortRow {
    Four part[SHORT_WIDTH / 128];
};

template <class T>
__device__ inline ShortRow load_short(const T* row, int width) {
    ShortRow own;
    for (int p = 0; p < SHORT_WIDTH / 128; p++) own.part[p] = load_four(row, 4 * (threadIdx.x % 32) + 128 * p, width);
    return own;
}

template <class T>
__device__ inline void store_short(T* row, int width, const ShortRow& own) {
    for (int p = 0; p < SHORT_WIDTH / 128; p++) store_four(row, 4 * (threadIdx.x % 32) + 128 * p, width, own.part[p]);
}

// 1 / rms of a row, all of whose lanes must call it.
__device__ inline float inverse_rms(const ShortRow& x, int width, float eps) {
    float sum = 0;
    for (const Four& part : x.part) {
        for (float v : part.x) sum += v * v;
    }
    return 1.0f / sqrtf(warp_sum(sum) / width + eps);
}

template <class Y, class X>
__device__ inline void rms_norm_short(Y* y, const X* x, const float* gain, float eps, int width, long long rows) {
    long long row = (long long)blockIdx.x * NORM_WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    ShortRow own = load_short(x + row * width, width), g = load_short(gain, width);
    float scale = inverse_rms(own, width, eps);
    for (int p = 0; p < SHORT_WIDTH / 128; p++) {
        for (int k = 0; k < 4; k++) own.part[p].x[k] = own.part[p].x[k] * scale * g.part[p].x[k];
    }
    store_short(y + row * width, width, own);
}

#define RMS_NORM_KERNELS(Y, X, SUFFIX)                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        rms_norm_##SUFFIX(Y* y, const X* x, const float* gain, float eps, int width) {                                \
        rms_norm(y, x, gain, eps, width);                                                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        rms_norm_short_##SUFFIX(Y* y, const X* x, const float* gain, float eps, int width, long long rows) {          \
        rms_norm_short(y, x, gain, eps, width, rows);                                                                 \
    }

RMS_NORM_KERNELS(float, float, f32)
RMS_NORM_KERNELS(bf16, float, bf16)
RMS_NORM_KERNELS(float, bf16, f32_of_bf16)
RMS_NORM_KERNELS(bf16, bf16, bf16_of_bf16)

// What the kernels below do: they overwrite dy by the gradient of x, `block_rows` rows a block. Unless `partials` is
// null, partials[block][column] becomes the block's sum of dy x / rms.
template <class T>
__device__ inline void rms_norm_in_place(T* dy, float* partials, const T* x, const float* gain, float eps, int width,
                                         long long rows, int block_rows) {
    long long first = (long long)blockIdx.x * block_rows;
    for (long long row = first; row < first + block_rows && row < rows; row++) {
        T* d = dy + row * width;
        const T* v = x + row * width;
        float scale = inverse_rms(v, width, eps), dot = 0;
        for (int i = threadIdx.x; i < width; i += blockDim.x) dot += to_float(d[i]) * gain[i] * to_float(v[i]);
        float shrink = scale * scale * scale * block_sum(dot) / width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float di = to_float(d[i]), vi = to_float(v[i]);
            if (partials) {
                float* sum = partials + (long long)blockIdx.x * width + i;
                *sum = (row == first ? 0.0f : *sum) + di * vi * scale;
            }
            d[i] = from_float<T>(di * gain[i] * scale - vi * shrink);
        }
    }
}

template <class T>
__device__ inline void rms_norm_in_place_short(T* dy, float* partials, const T* x, const float* gain, float eps,
                                               int width, long long rows, int block_rows) {
    __shared__ float sums[NORM_WARPS][SHORT_WIDTH];
    int warp = threadIdx.x / 32;
    long long first = (long long)blockIdx.x * block_rows;
    ShortRow g = load_short(gain, width), sum = {};
    for (long long row = first + warp; row < first + block_rows && row < rows; row += NORM_WARPS) {
        ShortRow d = load_short(dy + row * width, width), v = load_short(x + row * width, width);
        float scale = inverse_rms(v, width, eps), dot = 0;
        for (int p = 0; p < SHORT_WIDTH / 128; p++) {
            for (int k = 0; k < 4; k++) dot += d.part[p].x[k] * g.part[p].x[k] * v.part[p].x[k];
        }
        float shrink = scale * scale * scale * warp_sum(dot) / width;
        for (int p = 0; p < SHORT_WIDTH / 128; p++) {
            for (int k = 0; k < 4; k++) {
                float di = d.part[p].x[k], vi = v.part[p].x[k];
                sum.part[p].x[k] += di * vi * scale;
                d.part[p].x[k] = di * g.part[p].x[k] * scale - vi * shrink;
            }
        }
        store_short(dy + row * width, width, d);
    }
    if (!partials) return;
    store_short(sums[warp], width, sum);
    __syncthreads();
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float total = 0;
        for (int w = 0; w < NORM_WARPS; w++) total += sums[w][column];
        partials[(long long)blockIdx.x * width + column] = total;
    }
}

#define RMS_NORM_IN_PLACE_KERNELS(T, SUFFIX)                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        rms_norm_in_place_##SUFFIX(T* dy, float* partials, const T* x, const float* gain, float eps, int width,       \
                                   long long rows, int block_rows) {                                                  \
        rms_norm_in_place(dy, partials, x, gain, eps, width, rows, block_rows);                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        rms_norm_in_place_short_##SUFFIX(T* dy, float* partials, const T* x, const float* gain, float eps, int width, \
                                         long long rows, int block_rows) {                                            \
        rms_norm_in_place_short(dy, partials, x, gain, eps, width, rows, block_rows);                                 \
    }

RMS_NORM_IN_PLACE_KERNELS(float, f32)
RMS_NORM_IN_PLACE_KERNELS(bf16, bf16)

// to[column] += the sum of the partial sums; one block per column, because narrow rows have many partial sums.
extern "C" __global__ void __launch_bounds__(256)
    add_column_partials(float* to, const float* partials, int width, int count) {
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[(long long)i * width + blockIdx.x];
    sum = block_sum(sum);
    if (threadIdx.x == 0) to[blockIdx.x] += sum;
}

// dx += the gradient of the row's input; `scales` receives the row's 1 / rms for the gradient of the gain.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_backward(float* dx, float* scales, const float* dy, const float* x, const float* gain, float eps,
                      int width) {
    long long row = blockIdx.x;
    dx += row * width, dy += row * width, x += row * width;
    float scale = inverse_rms(x, width, eps), dot = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) dot += dy[i] * gain[i] * x[i];
    float shrink = scale * scale * scale * block_sum(dot) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) dx[i] += dy[i] * gain[i] * scale - x[i] * shrink;
    if (threadIdx.x == 0) scales[row] = scale;
}

// How many rows are added into one partial sum, in order.
constexpr int PARTIAL_ROWS = 64;

// partials[block of rows][column] = sum of dy x / rms; grid (blocks of rows, columns / 256), because the
// second side of a grid has a limit of 65,535.
extern "C" __global__ void gain_partials(float* partials, const float* dy, const float* x, const float* scales,
                                         int width, int rows) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, first = blockIdx.x * PARTIAL_ROWS;
    if (column >= width) return;
    float sum = 0;
    for (int row = first; row < first + PARTIAL_ROWS && row < rows; row++) {
        long long i = (long long)row * width + column;
        sum += dy[i] * x[i] * scales[row];
    }
    partials[(long long)blockIdx.x * width + column] = sum;
}

template <class T>
__device__ inline void bias_partials(float* partials, const T* dy, int width, int rows) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, first = blockIdx.x * PARTIAL_ROWS;
    if (column >= width) return;
    float sum = 0;
    for (int row = first; row < first + PARTIAL_ROWS && row < rows; row++) {
        sum += to_float(dy[(long long)row * width + column]);
    }
    partials[(long long)blockIdx.x * width + column] = sum;
}

extern "C" __global__ void bias_partials_f32(float* partials, const float* dy, int width, int rows) {
    bias_partials(partials, dy, width, rows);
}

extern "C" __global__ void bias_partials_bf16(float* partials, const bf16* dy, int width, int rows) {
    bias_partials(partials, dy, width, rows);
}

// to[column] += the sum of the partial sums, in order.
extern "C" __global__ void add_partials(float* to, const float* partials, int width, int count) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = to[column];
    for (int i = 0; i < count; i++) sum += partials[(long long)i * width + column];
    to[column] = sum;
}
