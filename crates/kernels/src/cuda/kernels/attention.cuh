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

// The keys that a query sees: rows of [x, y) or [z, w). Where SOME is false, those of its whole sequence.
//
// With SOME, chunks[offsets[tile]] to chunks[offsets[tile + 1]] are the first rows of the chunks that a tile streams;
// a chunk in which nobody sees anything isn't among them.
struct Seen {
    const int* offsets;
    const int* chunks;
    const int4* visible;

    __device__ bool sees(const int4& v, int key) const { return (key >= v.x && key < v.y) || (key >= v.z && key < v.w); }
};

// A hidden score: finite, so that a row whose first chunks are hidden stays a number. Its exponential vanishes beside
// that of any score that is seen.
constexpr float HIDDEN = -1e30f;

// The chunks of CHUNK rows that are streamed past a tile.
template <bool SOME, int CHUNK>
struct Stream {
    int count;
    int first;
    const int* chunks;

    __device__ Stream(int4 tile, const Seen& seen) {
        first = tile.z;
        count = (tile.w - tile.z + CHUNK - 1) / CHUNK;
        chunks = nullptr;
        if (SOME) {
            chunks = seen.chunks + seen.offsets[blockIdx.x];
            count = seen.offsets[blockIdx.x + 1] - seen.offsets[blockIdx.x];
        }
    }

    __device__ int row(int step) const { return SOME ? chunks[step] : first + step * CHUNK; }
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
