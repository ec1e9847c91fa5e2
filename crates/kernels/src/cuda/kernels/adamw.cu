// AdamW's update, and the sums of squares that clip its gradient.

// How many numbers a block adds the squares of.
constexpr int SQUARES = 1 << 14;

// sums[block] = the sum of the squares of its numbers, in f64.
extern "C" __global__ void __launch_bounds__(256) sums_of_squares(double* sums, const float* x, long long n) {
    long long first = (long long)blockIdx.x * SQUARES;
    double sum = 0;
    for (int i = threadIdx.x; i < SQUARES && first + i < n; i += blockDim.x) {
        double value = x[first + i];
        sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void adamw(float* w, float* m, float* v, const float* grad, float grad_scale, float beta1,
                                 float beta2, float step_size, float root, float eps, float decay, long long n) {
    long long i = first_of_thread();
    if (i >= n) return;
    Four ws = load_four(w, i, n), ms = load_four(m, i, n), vs = load_four(v, i, n), g = load_four(grad, i, n);
    for (int k = 0; k < 4; k++) {
        float gradient = g.x[k] * grad_scale;
        ms.x[k] = beta1 * ms.x[k] + (1.0f - beta1) * gradient;
        vs.x[k] = beta2 * vs.x[k] + (1.0f - beta2) * gradient * gradient;
        ws.x[k] = ws.x[k] * decay - step_size * ms.x[k] / (sqrtf(vs.x[k]) * root + eps);
    }
    store_four(w, i, n, ws);
    store_four(m, i, n, ms);
    store_four(v, i, n, vs);
}
