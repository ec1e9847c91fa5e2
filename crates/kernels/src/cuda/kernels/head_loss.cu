// The softmax statistics of rows of logits, and the gradient of a weighted sum of their negative log-likelihoods.

// The difference from the largest logit below which a token counts as impossible.
constexpr float LOWEST = -1e4f;

#define INFINITE __int_as_float(0x7f800000)

// Sums of e^(z - max) and of e^(z - max) (z - max).
struct Softmax {
    float max;
    double z;
    double dot;
};

__device__ inline Softmax merged(const Softmax& a, const Softmax& b) {
    Softmax sum = {b.max > a.max ? b.max : a.max, 0, 0};
    const Softmax* parts[2] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        // Equal maxima may be infinite, and their difference would be NaN.
        double shift = 0;
        if (parts[i]->max != sum.max) shift = parts[i]->max - sum.max < LOWEST ? LOWEST : parts[i]->max - sum.max;
        double factor = exp(shift);
        sum.z += factor * parts[i]->z;
        sum.dot += factor * (parts[i]->dot + shift * parts[i]->z);
    }
    return sum;
}

// Merges all threads' values in a fixed order; every thread gets the result. Blocks have at most 512 threads.
template <class T, T (*MERGE)(const T&, const T&)>
__device__ inline T of_block(const T& own) {
    __shared__ T parts[512];
    __syncthreads();
    parts[threadIdx.x] = own;
    __syncthreads();
    for (int distance = blockDim.x / 2; distance > 0; distance /= 2) {
        if (threadIdx.x < distance) parts[threadIdx.x] = MERGE(parts[threadIdx.x], parts[threadIdx.x + distance]);
        __syncthreads();
    }
    return parts[0];
}

// One block of 512 threads per row. Without targets, z is the sum over all tokens; with targets, it is the sum over the
// other tokens, so that a nearly certain target doesn't drown the rest. Results that aren't wanted are null.
extern "C" __global__ void __launch_bounds__(512)
    head_statistics(const float* logits, const int* targets, float* entropy, float* nll, float* max, double* others,
                    int vocab) {
    int row = blockIdx.x, target = targets ? targets[row] : -1;
    logits += (long long)row * vocab;
    float largest = -INFINITE, z = 0, dot = 0;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) {
        if (v == target) continue;
        float logit = logits[v];
        if (logit > largest) {
            float shift = largest - logit < LOWEST ? LOWEST : largest - logit, factor = expf(shift);
            dot = factor * (dot + shift * z);
            z *= factor;
            largest = logit;
        }
        // All tokens are impossible: -inf - -inf would be NaN.
        float from = largest == -INFINITE ? 0.0f : largest;
        float distance = logit - from < LOWEST ? LOWEST : logit - from, e = expf(distance);
        z += e;
        dot += e * distance;
    }
    Softmax all = of_block<Softmax, merged>({largest, z, dot});
    if (threadIdx.x != 0) return;
    if (entropy) {
        double h = log(all.z) - all.dot / all.z;
        // This form keeps a NaN visible.
        entropy[row] = h < 0 ? 0.0f : (float)h;
    }
    if (!targets) return;
    float of_target = logits[target], top = of_target > all.max ? of_target : all.max;
    double shift = all.max == top ? 0 : (double)all.max - top;
    // There is no other token, or only impossible ones: nothing is left beside the target.
    double left = all.z == 0 ? 0 : exp(shift) * all.z;
    double sum = left + exp((double)of_target - top);
    nll[row] = (float)(top + log(sum) - of_target);
    if (max) max[row] = top;
    if (others) others[row] = left;
}

// g = weight (softmax(logits) - one at the target); grid (rows, blocks of 1024 columns).
template <class T>
__device__ inline void head_gradient(T* g, const float* logits, const int* targets, const float* weights,
                                     const float* max, const double* others, int vocab) {
    int row = blockIdx.x, target = targets[row];
    long long start = (long long)row * vocab;
    __shared__ float factors[2];
    float top = max[row];
    if (threadIdx.x == 0) {
        double weight = weights[row], z = others[row] + exp((double)logits[start + target] - top);
        factors[0] = (float)(weight / z);
        factors[1] = (float)(-weight * (others[row] / z));
    }
    __syncthreads();
    float factor = factors[0], of_target = factors[1];
    for (int v = blockIdx.y * 1024 + threadIdx.x; v < vocab && v < (blockIdx.y + 1) * 1024; v += blockDim.x) {
        g[start + v] = from_float<T>(v == target ? of_target : factor * expf(logits[start + v] - top));
    }
}

extern "C" __global__ void head_gradient_f32(float* g, const float* logits, const int* targets, const float* weights,
                                             const float* max, const double* others, int vocab) {
    head_gradient(g, logits, targets, weights, max, others, vocab);
}

extern "C" __global__ void head_gradient_bf16(bf16* g, const float* logits, const int* targets, const float* weights,
                                              const float* max, const double* others, int vocab) {
    head_gradient(g, logits, targets, weights, max, others, vocab);
}
