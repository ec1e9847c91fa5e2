// Backward of attention_bf16.cu, in two kernels. In one, each block owns a tile of keys and streams queries past it; in
// the other, the reverse. Together they compute 7/5 of the matmuls of a single kernel, but need no atomics, so every
// run gives the same bits. Both recompute the scores from the saved log-sum-exp and use delta = rowsum(dout out).

namespace attention_bf16 {

// The rows that are streamed at once.
constexpr int STREAMED = 32;
// The rows of a block's own tile; its gradients fill the registers.
template <int DIM>
constexpr int OWN = DIM <= 64 ? 128 : 64;

// The block's own rows, and two buffers for streamed rows. When the block owns keys, `left` has k and streams q, and
// `right` has v and streams dout; when it owns queries, the reverse.
template <int DIM>
struct Buffers {
    bf16 left[OWN<DIM> * STRIDE<DIM>];
    bf16 right[OWN<DIM> * STRIDE<DIM>];
    bf16 streamed_left[2][STREAMED * STRIDE<DIM>];
    bf16 streamed_right[2][STREAMED * STRIDE<DIM>];
    // Log-sum-exp of the streamed queries, in powers of two, and their delta.
    float lse[2][STREAMED];
    float delta[2][STREAMED];
};

// The value that a thread loads for the streamed queries: lse for the first 32 threads, delta for the next 32. Queries
// beyond the end get zeros; their rows of q and dout are zero too, so they contribute nothing.
__device__ inline float load_statistic(const Saved& saved, long long first, int row, int rows_end) {
    row += threadIdx.x % STREAMED;
    if (threadIdx.x >= 2 * STREAMED || row >= rows_end) return 0.0f;
    return threadIdx.x < STREAMED ? saved.lse[first + row] * LOG2_E : saved.delta[first + row];
}

template <int DIM>
__device__ inline void store_statistic(Buffers<DIM>& s, int buffer, float statistic) {
    if (threadIdx.x < STREAMED) s.lse[buffer][threadIdx.x] = statistic;
    else if (threadIdx.x < 2 * STREAMED) s.delta[buffer][threadIdx.x - STREAMED] = statistic;
}

// A tile is {first key, keys' end, first query, queries' end}. A block loops over all query heads that read its keys.
template <int DIM, bool SOME>
__device__ inline void backward_keys(bf16* dk, bf16* dv, const Saved& saved, int4 tile, Seen seen, Shape shape) {
    constexpr int TILES = OWN<DIM> / (THREADS / 32) / 16;
    int kv_head = blockIdx.y, dim = shape.head_dim, group = shape.heads / shape.kv_heads;
    int warp_row = threadIdx.x / 32 * TILES * 16, pair = threadIdx.x % 4 * 2;
    float scale = shape.scale() * LOG2_E;
    extern __shared__ uint4 dynamic_shared[];
    Buffers<DIM>& s = *(Buffers<DIM>*)dynamic_shared;
    Matrix keys = head_of(saved.k, shape.kv_heads, kv_head, dim, tile.y);
    float key_sums[TILES][DIM / 8][4], value_sums[TILES][DIM / 8][4];
    set_zero(key_sums);
    set_zero(value_sums);

    // Step i works on block i % blocks of the queries of head i / blocks of the group.
    attention::Stream<SOME, STREAMED> stream(tile, seen);
    int steps = stream.count * group;
    int next_head = kv_head * group, next_block = 0;
    auto load_next = [&](int buffer) {
        int next_row = stream.row(next_block);
        load_rows<DIM, STREAMED>(s.streamed_left[buffer], head_of(saved.q, shape.heads, next_head, dim, tile.w),
                                 next_row, dim);
        load_rows<DIM, STREAMED>(s.streamed_right[buffer], head_of(saved.dout, shape.heads, next_head, dim, tile.w),
                                 next_row, dim);
        float statistic = load_statistic(saved, (long long)next_head * shape.rows, next_row, tile.w);
        if (++next_block == stream.count) next_block = 0, next_head++;
        return statistic;
    };
    if (steps > 0) {
        load_rows<DIM, OWN<DIM>>(s.left, keys, tile.x, dim);
        load_rows<DIM, OWN<DIM>>(s.right, head_of(saved.v, shape.kv_heads, kv_head, dim, tile.y), tile.x, dim);
        store_statistic(s, 0, load_next(0));
    }
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2;
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        float statistic = step + 1 < steps ? load_next(buffer ^ 1) : 0.0f;
        float p[TILES][STREAMED / 8][4], ds[TILES][STREAMED / 8][4];
        row_matmuls<DIM>(p, s.left + warp_row * STRIDE<DIM>, s.streamed_left[buffer]);
        row_matmuls<DIM>(ds, s.right + warp_row * STRIDE<DIM>, s.streamed_right[buffer]);
        int row = SOME ? stream.row(step % stream.count) : 0;
#pragma unroll
        for (int n = 0; n < STREAMED / 8; n++) {
            int4 visible[2];
            if (SOME)
                for (int i = 0; i < 2; i++) visible[i] = seen.visible[min(row + n * 8 + pair + i, tile.w - 1)];
            float2 lse = *(float2*)&s.lse[buffer][n * 8 + pair], delta = *(float2*)&s.delta[buffer][n * 8 + pair];
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[t][n][i] = exp2_approx(p[t][n][i] * scale - (i % 2 ? lse.y : lse.x));
                    if (SOME && !seen.sees(visible[i % 2], tile.x + warp_row + t * 16 + i / 2 * 8 + threadIdx.x % 32 / 4))
                        p[t][n][i] = 0.0f;
                    ds[t][n][i] = p[t][n][i] * (ds[t][n][i] - (i % 2 ? delta.y : delta.x));
                }
        }
        add_weighted_rows<DIM>(value_sums, p, s.streamed_right[buffer]);
        add_weighted_rows<DIM>(key_sums, ds, s.streamed_left[buffer]);
        store_statistic(s, buffer ^ 1, statistic);
    }

    float scales[TILES][2], ones[TILES][2];
    for (int i = 0; i < TILES * 2; i++) scales[i / 2][i % 2] = shape.scale(), ones[i / 2][i % 2] = 1.0f;
    store<DIM>(dk + (long long)kv_head * dim, keys, tile.x + warp_row, dim, key_sums, scales);
    store<DIM>(dv + (long long)kv_head * dim, keys, tile.x + warp_row, dim, value_sums, ones);
}

// A tile is as in `forward`; each block computes part `blockIdx.z` of it.
template <int DIM, bool SOME>
__device__ inline void backward_queries(bf16* dq, const Saved& saved, int4 tile, Seen seen, Shape shape) {
    constexpr int TILES = OWN<DIM> / (THREADS / 32) / 16;
    tile.x += blockIdx.z * OWN<DIM>;
    if (tile.x >= tile.y) return;
    int head = blockIdx.y, kv_head = shape.kv_head(head), dim = shape.head_dim;
    int warp_row = threadIdx.x / 32 * TILES * 16, lane = threadIdx.x % 32;
    float scale = shape.scale() * LOG2_E;
    extern __shared__ uint4 dynamic_shared[];
    Buffers<DIM>& s = *(Buffers<DIM>*)dynamic_shared;
    Matrix queries = head_of(saved.q, shape.heads, head, dim, tile.y);
    Matrix keys = head_of(saved.k, shape.kv_heads, kv_head, dim, tile.w);
    Matrix values = head_of(saved.v, shape.kv_heads, kv_head, dim, tile.w);
    float lse[TILES][2], delta[TILES][2], sums[TILES][DIM / 8][4];
    set_zero(sums);
    for (int i = 0; i < TILES * 2; i++) {
        int row = min(tile.x + warp_row + i * 8 + lane / 4, tile.y - 1);
        lse[i / 2][i % 2] = saved.lse[(long long)head * shape.rows + row] * LOG2_E;
        delta[i / 2][i % 2] = saved.delta[(long long)head * shape.rows + row];
    }

    load_rows<DIM, OWN<DIM>>(s.left, queries, tile.x, dim);
    load_rows<DIM, OWN<DIM>>(s.right, head_of(saved.dout, shape.heads, head, dim, tile.y), tile.x, dim);
    attention::Stream<SOME, STREAMED> stream(tile, seen);
    if (stream.count > 0) {
        load_rows<DIM, STREAMED>(s.streamed_left[0], keys, stream.row(0), dim);
        load_rows<DIM, STREAMED>(s.streamed_right[0], values, stream.row(0), dim);
    }
    for (int step = 0; step < stream.count; step++) {
        int row = stream.row(step), buffer = step % 2;
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        if (step + 1 < stream.count) {
            load_rows<DIM, STREAMED>(s.streamed_left[buffer ^ 1], keys, stream.row(step + 1), dim);
            load_rows<DIM, STREAMED>(s.streamed_right[buffer ^ 1], values, stream.row(step + 1), dim);
        }
        float p[TILES][STREAMED / 8][4], ds[TILES][STREAMED / 8][4];
        row_matmuls<DIM>(p, s.left + warp_row * STRIDE<DIM>, s.streamed_left[buffer]);
        row_matmuls<DIM>(ds, s.right + warp_row * STRIDE<DIM>, s.streamed_right[buffer]);
        // Without this, exp2 could overflow at a key that does not exist.
        mask_columns(p, tile.w - row);
        if (SOME) hide(p, seen, tile.x + warp_row, tile.y, row, attention::HIDDEN);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < STREAMED / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    ds[t][n][i] = exp2_approx(p[t][n][i] * scale - lse[t][i / 2]) * (ds[t][n][i] - delta[t][i / 2]);
        add_weighted_rows<DIM>(sums, ds, s.streamed_left[buffer]);
    }

    float scales[TILES][2];
    for (int i = 0; i < TILES * 2; i++) scales[i / 2][i % 2] = shape.scale();
    store<DIM>(dq + (long long)head * dim, queries, tile.x + warp_row, dim, sums, scales);
}

}  // namespace attention_bf16

extern "C" __global__ void attention_delta_bf16(float* delta, const bf16* dout, const bf16* out, int heads,
                                                int head_dim, int rows) {
    attention_delta(delta, dout, out, heads, head_dim, rows);
}

#define ATTENTION_BACKWARD_BF16(NAME, DIM, SOME)                                                                      \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_keys_##NAME(                                 \
        bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,          \
        const float* delta, const int4* tiles, const int* offsets, const int* chunks, const int4* visible,            \
        int heads, int kv_heads, int head_dim, int rows) {                                                            \
        attention_bf16::backward_keys<DIM, SOME>(dk, dv, {q, k, v, dout, lse, delta}, tiles[blockIdx.x],              \
                                                 {offsets, chunks, visible}, {heads, kv_heads, head_dim, rows});      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_queries_##NAME(                              \
        bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,                    \
        const float* delta, const int4* tiles, const int* offsets, const int* chunks, const int4* visible,            \
        int heads, int kv_heads, int head_dim, int rows) {                                                            \
        attention_bf16::backward_queries<DIM, SOME>(dq, {q, k, v, dout, lse, delta}, tiles[blockIdx.x],               \
                                                    {offsets, chunks, visible}, {heads, kv_heads, head_dim, rows});   \
    }

ATTENTION_BACKWARD_BF16(bf16_32, 32, false)
ATTENTION_BACKWARD_BF16(bf16_64, 64, false)
ATTENTION_BACKWARD_BF16(bf16_96, 96, false)
ATTENTION_BACKWARD_BF16(bf16_128, 128, false)
ATTENTION_BACKWARD_BF16(some_bf16_32, 32, true)
ATTENTION_BACKWARD_BF16(some_bf16_64, 64, true)
ATTENTION_BACKWARD_BF16(some_bf16_96, 96, true)
ATTENTION_BACKWARD_BF16(some_bf16_128, 128, true)
