// RMSNorm, y = g x / sqrt(mean(x^2) + eps), one block per row; and sums over rows, which the gradient of a gain or bias
// needs.

__device__ inline float inverse_rms(const float* x, int width, float eps) {
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i] * x[i];
    return 1.0f / sqrtf(block_sum(sum) / width + eps);
}

template <class T>
__device__ inline void rms_norm(T* y, const float* x, const float* gain, float eps, int width) {
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    float scale = inverse_rms(x, width, eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = from_float<T>(x[i] * scale * gain[i]);
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_f32(float* y, const float* x, const float* gain, float eps, int width) {
    rms_norm(y, x, gain, eps, width);
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_bf16(bf16* y, const float* x, const float* gain, float eps, int width) {
    rms_norm(y, x, gain, eps, width);
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

// partials[block of rows][column] = sum of dy x / rms; grid (columns / 256, blocks of rows).
extern "C" __global__ void gain_partials(float* partials, const float* dy, const float* x, const float* scales,
                                         int width, int rows) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * PARTIAL_ROWS;
    if (column >= width) return;
    float sum = 0;
    for (int row = first; row < first + PARTIAL_ROWS && row < rows; row++) {
        long long i = (long long)row * width + column;
        sum += dy[i] * x[i] * scales[row];
    }
    partials[(long long)blockIdx.y * width + column] = sum;
}

template <class T>
__device__ inline void bias_partials(float* partials, const T* dy, int width, int rows) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * PARTIAL_ROWS;
    if (column >= width) return;
    float sum = 0;
    for (int row = first; row < first + PARTIAL_ROWS && row < rows; row++) {
        sum += to_float(dy[(long long)row * width + column]);
    }
    partials[(long long)blockIdx.y * width + column] = sum;
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
