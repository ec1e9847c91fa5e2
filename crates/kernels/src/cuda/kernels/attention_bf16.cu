// Attention in bf16 on tensor cores: the parts that forward and backward share, and forward. Backward is in
// attention_bf16_backward.cu; shapes are as in attention_f32.cu. DIM is the head_dim that a kernel is compiled for; a
// smaller multiple of 8 is padded with zeros in shared memory. Each warp owns 16 or 32 rows of its block's tile, and
// all warps read the rows that are streamed past the tile. So scores never leave the registers: the sums of one matmul,
// rounded to bf16, are the left operand of the next.

namespace attention_bf16 {

constexpr int THREADS = 128;
// The queries of a tile, and the keys that are streamed at once.
constexpr int QUERIES = 128;
constexpr int KEYS = 64;
constexpr float LOG2_E = 1.4426950408889634f;

using Shape = attention::Shape;
using Saved = attention::Saved<bf16>;
using Seen = attention::Seen;

// The columns of one head in the rows up to `rows_end`.
struct Matrix {
    const bf16* start;
    int width;
    int rows_end;
};

__device__ inline Matrix head_of(const bf16* x, int heads, int head, int head_dim, int rows_end) {
    return {x + (long long)head * head_dim, heads * head_dim, rows_end};
}

// The distance between rows in shared memory: 16 bytes from each of eight rows fall into all 32 banks.
template <int DIM>
constexpr int STRIDE = DIM + 8;

// Starts the copy of `ROWS` rows into shared memory; elements outside the head's rows and columns become zero.
template <int DIM, int ROWS>
__device__ inline void load_rows(bf16* tile, const Matrix& x, int row, int head_dim) {
#pragma unroll
    for (int step = 0; step < ROWS * DIM / 8 / THREADS; step++) {
        int i = step * THREADS + threadIdx.x, r = i / (DIM / 8), column = i % (DIM / 8) * 8;
        bool is_there = row + r < x.rows_end && column < head_dim;
        const bf16* from = is_there ? x.start + (long long)(row + r) * x.width + column : x.start;
        copy_async_16_or_zero(tile + r * STRIDE<DIM> + column, from, is_there);
    }
}

template <int TILES, int COLUMNS>
__device__ inline void set_zero(float (&sums)[TILES][COLUMNS][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[t][n][i] = 0.0f;
}

// sums = a b^T for the warp's own 16 TILES rows of `a` and 8 COLUMNS rows of `b`, both in shared memory.
template <int DIM, int TILES, int COLUMNS>
__device__ inline void row_matmuls(float (&sums)[TILES][COLUMNS][4], const bf16* a, const bf16* b) {
    int lane = threadIdx.x % 32;
    a += lane % 16 * STRIDE<DIM> + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * STRIDE<DIM> + lane / 8 % 2 * 8;
    set_zero(sums);
#pragma unroll
    for (int k = 0; k < DIM; k += 16) {
        unsigned left[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) load_matrix_x4(left[t], a + t * 16 * STRIDE<DIM> + k);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            unsigned right[4];
            load_matrix_x4(right, b + n * 8 * STRIDE<DIM> + k);
            unsigned first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_m16n8k16(sums[t][n], left[t], first);
                mma_m16n8k16(sums[t][n + 1], left[t], second);
            }
        }
    }
}

// sums += p x, with `p` in the warp's registers and 8 STEPS rows of `x` in shared memory.
template <int DIM, int TILES, int STEPS>
__device__ inline void add_weighted_rows(float (&sums)[TILES][DIM / 8][4], const float (&p)[TILES][STEPS][4],
                                         const bf16* x) {
    int lane = threadIdx.x % 32;
    x += lane % 16 * STRIDE<DIM> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < STEPS; k += 2) {
        unsigned left[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                left[t][i] = pack_bf16(p[t][k + i / 2][i % 2 * 2], p[t][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < DIM / 8; n += 2) {
            unsigned right[4];
            load_matrix_x4_transposed(right, x + k * 8 * STRIDE<DIM> + n * 8);
            unsigned first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_m16n8k16(sums[t][n], left[t], first);
                mma_m16n8k16(sums[t][n + 1], left[t], second);
            }
        }
    }
}

// out = factors sums for the warp's rows, from `row` on; `out` points to the head's first column. factors[t][h] belongs
// to row 16 t + 8 h + lane / 4.
template <int DIM, int TILES>
__device__ inline void store(bf16* out, const Matrix& shape, int row, int head_dim,
                             const float (&sums)[TILES][DIM / 8][4], const float (&factors)[TILES][2]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + t * 16 + half * 8 + lane / 4;
            if (r >= shape.rows_end) continue;
            bf16* start = out + (long long)r * shape.width;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                const float* pair = &sums[t][n][half * 2];
                unsigned word = pack_bf16(pair[0] * factors[t][half], pair[1] * factors[t][half]);
                if (n * 8 < head_dim) *(unsigned*)(start + n * 8 + lane % 4 * 2) = word;
            }
        }
}

// Overwrites raw scores with the exponentials of their scaled differences from the largest. `max` covers the keys so
// far, `sum` is this thread's part of their sum, and `sums` are rescaled to the new maximum.
template <int DIM, int TILES, int COLUMNS>
__device__ inline void online_softmax(float (&scores)[TILES][COLUMNS][4], float (&max)[TILES][2],
                                      float (&sum)[TILES][2], float (&sums)[TILES][DIM / 8][4], float scale) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = max[t][half];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                largest = fmaxf(largest, fmaxf(scores[t][n][half * 2], scores[t][n][half * 2 + 1]));
            // Four threads share a row.
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            float factor = exp2_approx((max[t][half] - largest) * scale), shift = largest * scale, added = 0.0f;
            max[t][half] = largest;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++)
                    added += scores[t][n][i] = exp2_approx(scores[t][n][i] * scale - shift);
            sum[t][half] = sum[t][half] * factor + added;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                sums[t][n][half * 2] *= factor;
                sums[t][n][half * 2 + 1] *= factor;
            }
        }
}

// Sets the scores of columns beyond `columns` to -inf.
template <int TILES, int COLUMNS>
__device__ inline void mask_columns(float (&scores)[TILES][COLUMNS][4], int columns) {
    if (columns >= COLUMNS * 8) return;
    int first = threadIdx.x % 4 * 2;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (n * 8 + first + i % 2 >= columns) scores[t][n][i] = __uint_as_float(0xff800000u);
}

// Sets the scores of the keys from `key` on that the warp's queries from `row` on don't see. Queries beyond `rows_end`
// see what the last one does.
template <int TILES, int COLUMNS>
__device__ inline void hide(float (&scores)[TILES][COLUMNS][4], const Seen& seen, int row, int rows_end, int key,
                            float hidden) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int4 visible = seen.visible[min(row + t * 16 + half * 8 + lane / 4, rows_end - 1)];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++)
                    if (!seen.sees(visible, key + n * 8 + lane % 4 * 2 + i % 2)) scores[t][n][i] = hidden;
        }
}

// A tile is {first query, queries' end, first key, keys' end}.
template <int DIM, bool SOME>
__device__ inline void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, int4 tile,
                               Seen seen, Shape shape) {
    constexpr int TILES = QUERIES / (THREADS / 32) / 16;
    int head = blockIdx.y, kv_head = shape.kv_head(head), dim = shape.head_dim;
    int warp_row = threadIdx.x / 32 * TILES * 16, lane = threadIdx.x % 32;
    Matrix queries = head_of(q, shape.heads, head, dim, tile.y);
    Matrix keys = head_of(k, shape.kv_heads, kv_head, dim, tile.w);
    Matrix values = head_of(v, shape.kv_heads, kv_head, dim, tile.w);
    extern __shared__ uint4 dynamic_shared[];
    bf16* query_rows = (bf16*)dynamic_shared;
    bf16* key_rows = query_rows + QUERIES * STRIDE<DIM>;
    bf16* value_rows = key_rows + KEYS * STRIDE<DIM>;
    float sums[TILES][DIM / 8][4], max[TILES][2], sum[TILES][2];
    set_zero(sums);
    for (int i = 0; i < TILES * 2; i++) max[i / 2][i % 2] = __uint_as_float(0xff800000u), sum[i / 2][i % 2] = 0.0f;

    attention::Stream<SOME, KEYS> stream(tile, seen);
    load_rows<DIM, QUERIES>(query_rows, queries, tile.x, dim);
    if (stream.count > 0) load_rows<DIM, KEYS>(key_rows, keys, stream.row(0), dim);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int step = 0; step < stream.count; step++) {
        int row = stream.row(step);
        // Values are loaded during the first matmul, the next keys during the second.
        load_rows<DIM, KEYS>(value_rows, values, row, dim);
        float scores[TILES][KEYS / 8][4];
        row_matmuls<DIM>(scores, query_rows + warp_row * STRIDE<DIM>, key_rows);
        mask_columns(scores, tile.w - row);
        if (SOME) hide(scores, seen, tile.x + warp_row, tile.y, row, attention::HIDDEN);
        online_softmax<DIM>(scores, max, sum, sums, shape.scale() * LOG2_E);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        if (step + 1 < stream.count) load_rows<DIM, KEYS>(key_rows, keys, stream.row(step + 1), dim);
        add_weighted_rows<DIM>(sums, scores, value_rows);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }

    float factors[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[t][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            factors[t][half] = 1.0f / total;
            int row = tile.x + warp_row + t * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && row < tile.y)
                lse[(long long)head * shape.rows + row] = max[t][half] * shape.scale() + logf(total);
        }
    store<DIM>(out + (long long)head * dim, queries, tile.x + warp_row, dim, sums, factors);
}

}  // namespace attention_bf16

#define ATTENTION_FORWARD_BF16(NAME, DIM, SOME)                                                                       \
    extern "C" __global__ void __launch_bounds__(128) attention_forward_##NAME(                                       \
        bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const int4* tiles, const int* offsets,    \
        const int* chunks, const int4* visible, int heads, int kv_heads, int head_dim, int rows) {                    \
        attention_bf16::forward<DIM, SOME>(out, lse, q, k, v, tiles[blockIdx.x], {offsets, chunks, visible},          \
                                           {heads, kv_heads, head_dim, rows});                                        \
    }

ATTENTION_FORWARD_BF16(bf16_32, 32, false)
ATTENTION_FORWARD_BF16(bf16_64, 64, false)
ATTENTION_FORWARD_BF16(bf16_96, 96, false)
ATTENTION_FORWARD_BF16(bf16_128, 128, false)
ATTENTION_FORWARD_BF16(some_bf16_32, 32, true)
ATTENTION_FORWARD_BF16(some_bf16_64, 64, true)
ATTENTION_FORWARD_BF16(some_bf16_96, 96, true)
ATTENTION_FORWARD_BF16(some_bf16_128, 128, true)
