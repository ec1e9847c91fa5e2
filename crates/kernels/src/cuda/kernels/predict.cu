// A sampler's predictions: a block of 512 threads takes a row of logits; it applies guidance, forbids tokens, scales
// and filters the logits in place, chooses a token by Gumbel noise and measures its confidence. Exponentials and sums
// are f64, as on the CPU.

struct Choice {
    double score;
    int token;
};

// The better choice; among equals, the earlier one.
__device__ inline Choice better_of(const Choice& a, const Choice& b) {
    bool is_b = b.score > a.score || (b.score == a.score && b.token < a.token);
    return is_b ? b : a;
}

__device__ inline double summed(const double& a, const double& b) { return a + b; }
__device__ inline float larger(const float& a, const float& b) { return b > a ? b : a; }

// The largest two numbers.
struct Two {
    float first, second;
};

__device__ inline Two two_of(const Two& a, const Two& b) {
    float lower = larger(a.second, b.second), low_first = a.first > b.first ? b.first : a.first;
    return {larger(a.first, b.first), larger(lower, low_first)};
}

__device__ inline double block_sum(double own) { return of_block<double, summed>(own); }

// An integer that grows with z, and the inverse function.
__device__ inline unsigned order_of(float z) {
    unsigned bits = __float_as_uint(z);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ inline float of_order(unsigned order) {
    return __uint_as_float(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ inline double log_sum_exp(const float* row, int vocab) {
    float largest = -INFINITE;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) largest = larger(largest, row[v]);
    double max = of_block<float, larger>(largest), sum = 0;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) sum += exp(row[v] - max);
    return max + log(block_sum(sum));
}

// The total probability of the tokens whose order is above a limit.
__device__ inline double held_above(const float* row, int vocab, double lse, unsigned limit) {
    double held = 0;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (order_of(row[v]) > limit) held += exp(row[v] - lse);
    return block_sum(held);
}

__device__ inline int count_from(const float* row, int vocab, unsigned limit) {
    double count = 0;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) count += order_of(row[v]) >= limit;
    return (int)block_sum(count);
}

// Keeps the most likely tokens until together they hold more than top_p; among equals, the earlier ones are kept.
__device__ inline void keep_top_p(float* row, int vocab, double top_p) {
    double lse = log_sum_exp(row, vocab);
    unsigned low = 0, high = 0xffffffffu;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (held_above(row, vocab, lse, middle) <= top_p) high = middle;
        else low = middle + 1;
    }
    double held = held_above(row, vocab, lse, low);
    int equal = count_from(row, vocab, low) - (low == 0xffffffffu ? 0 : count_from(row, vocab, low + 1));
    __syncthreads();
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (order_of(row[v]) < low) row[v] = -INFINITE;
    __syncthreads();
    if (threadIdx.x == 0 && equal > 1) {
        double each = exp(of_order(low) - lse);
        for (int v = 0; v < vocab; v++) {
            if (order_of(row[v]) != low) continue;
            if (held > top_p) row[v] = -INFINITE;
            else held += each;
        }
    }
    __syncthreads();
}

// Keeps the tokens that are no less likely than the k-th.
__device__ inline void keep_top_k(float* row, int vocab, int k) {
    unsigned low = 0, high = 0xffffffffu;
    while (low < high) {
        unsigned middle = high - (high - low) / 2;
        if (count_from(row, vocab, middle) >= k) low = middle;
        else high = middle - 1;
    }
    float least = of_order(low);
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (row[v] < least) row[v] = -INFINITE;
    __syncthreads();
}

// z - noise ln(-ln u), with u drawn as predict.rs says.
__device__ inline double noisy(float z, double noise, unsigned long long key, int position, int v) {
    if (noise == 0) return z;
    uint4 words = philox(key, make_uint4(v, position + 1, 0, 2));
    double u = (double)(((unsigned long long)words.x << 32 | words.y) >> 11) * (1.0 / 9007199254740992.0);
    if (u < 2.2250738585072014e-308) u = 2.2250738585072014e-308;
    return z - noise * log(-log(u));
}

// The confidence in a choice: its probability, the margin to the second largest, or the negative entropy.
__device__ inline double rated(const float* row, int vocab, int token, int confidence) {
    double lse = log_sum_exp(row, vocab);
    if (confidence == 0) return exp(row[token] - lse);
    if (confidence == 1) {
        Two own = {-INFINITE, -INFINITE};
        for (int v = threadIdx.x; v < vocab; v += blockDim.x) own = two_of(own, {row[v], -INFINITE});
        Two all = of_block<Two, two_of>(own);
        return exp(all.first - lse) - exp(all.second - lse);
    }
    double sum = 0;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) {
        double p = exp(row[v] - lse);
        sum += p * log(p + 1e-10);
    }
    return block_sum(sum);
}

// `unguided` is null without guidance; `excluded` is -1 if every token may be chosen.
extern "C" __global__ void __launch_bounds__(512)
    predict(float* logits, const float* unguided, const int* forbidden, const unsigned long long* keys,
            const int* positions, int* tokens, double* confidences, double top_p, double noise, float scale,
            float divisor, int num_forbidden, int top_k, int excluded, int confidence, int vocab) {
    float* row = logits + (long long)blockIdx.x * vocab;
    const float* other = unguided ? unguided + (long long)blockIdx.x * vocab : nullptr;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) {
        float z = row[v];
        // Each step is rounded, as on the CPU.
        if (other) z = __fadd_rn(other[v], __fmul_rn(scale + 1.0f, z - other[v]));
        row[v] = z / divisor;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < num_forbidden; i += blockDim.x) row[forbidden[i]] = -INFINITE;
    __syncthreads();
    if (top_p < 1) keep_top_p(row, vocab, top_p);
    if (top_k > 0 && top_k < vocab) keep_top_k(row, vocab, top_k);
    Choice own = {-INFINITE, vocab};
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) {
        if (v == excluded) continue;
        double score = noisy(row[v], noise, keys[blockIdx.x], positions[blockIdx.x], v);
        if (score > own.score) own = {score, v};
    }
    Choice best = of_block<Choice, better_of>(own);
    int token = best.token < vocab ? best.token : 0;
    double of_choice = rated(row, vocab, token, confidence);
    if (threadIdx.x != 0) return;
    tokens[blockIdx.x] = token;
    confidences[blockIdx.x] = of_choice;
}
