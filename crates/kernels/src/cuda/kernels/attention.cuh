// What the attention kernels in f32 and on tensor cores have in common.

namespace attention {

struct Shape {
    int heads;
    int kv_heads;
    int head_dim;
    // The number of rows of the queries: M.
    int rows;

    __device__ int kv_head(int head) const { return head / (heads / kv_heads); }
    __device__ float scale() const { return 1.0f / sqrtf((float)head_dim); }
};

// The inputs of backward.
template <class T>
struct Saved {
    const T* q;
    const T* k;
    const T* v;
    const T* dout;
    const float* lse;
    const float* delta;
};

}  // namespace attention

// delta = rowsum(dout out) [H, M]; one warp for each row and head.
template <class T>
__device__ inline void attention_delta(float* delta, const T* dout, const T* out, int heads, int head_dim, int rows) {
    long long row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= rows) return;
    long long start = (row * heads + head) * head_dim;
    float sum = 0.0f;
    for (int i = lane; i < head_dim; i += 32) sum += to_float(dout[start + i]) * to_float(out[start + i]);
    sum = warp_sum(sum);
    if (lane == 0) delta[(long long)head * rows + row] = sum;
}
