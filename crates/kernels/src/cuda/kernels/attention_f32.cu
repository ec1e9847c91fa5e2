// Attention in f32, for any head_dim up to 256: forward, and backward for keys and values and for queries. Sequences
// are packed, and a block works within one of them. Shapes: q, out [M, H * head_dim]; k, v [N, K * head_dim]; lse,
// delta [H, M]. A block of 16 x 16 threads multiplies 64 x 64 tiles, with 4 x 4 numbers per thread and 32 steps at a
// time. attention_bf16.cu has the same kernels for tensor cores.

namespace attention_f32 {

using Shape = attention::Shape;
using Saved = attention::Saved<float>;
using Seen = attention::Seen;

constexpr int THREADS = 256;
// The rows of a block's tile of queries, and of keys.
constexpr int TILE = 64;
// The steps of a matmul that are in shared memory at once.
constexpr int STEPS = 32;
// The stride of a row of 64 numbers in shared memory: a multiple of 4, so that four are read at once, but not of the 32
// banks.
constexpr int STRIDE = TILE + 4;

struct Matrix {
    const float* start;
    int width;
    int row;
    int rows_end;
};

struct Shared {
    float a[STEPS * STRIDE];
    float b[STEPS * STRIDE];
    // Scores or their gradients; the first index is the one that the next matmul sums over.
    float scores[TILE * STRIDE];
};

// One head's columns of a matrix with `heads` of them, from `row` on.
__device__ inline Matrix head_of(const float* x, int heads, int head, int head_dim, int row, int rows_end) {
    return {x + (long long)head * head_dim, heads * head_dim, row, rows_end};
}

__device__ inline float at(const Matrix& x, int row, int column, int columns) {
    row += x.row;
    return row < x.rows_end && column < columns ? x.start[(long long)row * x.width + column] : 0.0f;
}

// panel[step][row] = x[row][first + step], for 64 rows. A warp reads 8 columns of 4 rows and writes to all 32 banks.
__device__ inline void load_columns(float* panel, const Matrix& x, int first, int columns) {
#pragma unroll
    for (int i = 0; i < TILE * STEPS / THREADS; i++) {
        int step = threadIdx.x % 8 + i / 2 * 8, row = threadIdx.x / 8 + i % 2 * 32;
        panel[step * STRIDE + row] = at(x, row, first + step, columns);
    }
}

// panel[step][column] = x[first_row + step][first + column], for 64 columns.
__device__ inline void load_rows(float* panel, const Matrix& x, int first_row, int first, int columns) {
#pragma unroll
    for (int i = 0; i < TILE * STEPS / THREADS; i++) {
        int step = threadIdx.x / 64 + i * 4, column = threadIdx.x % 64;
        panel[step * STRIDE + column] = at(x, first_row + step, first + column, columns);
    }
}

// sums[i][j] += sum over steps of a[step][4 y + i] b[step][4 x + j].
__device__ inline void multiply(float (&sums)[4][4], const float* a, const float* b, int steps) {
    const float* a_row = a + threadIdx.x / 16 * 4;
    const float* b_row = b + threadIdx.x % 16 * 4;
#pragma unroll 4
    for (int step = 0; step < steps; step++) {
        float4 a4 = *(const float4*)(a_row + step * STRIDE);
        float4 b4 = *(const float4*)(b_row + step * STRIDE);
        float left[4] = {a4.x, a4.y, a4.z, a4.w}, right[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] += left[i] * right[j];
    }
}

// sums = a b^T, over the columns of a head.
__device__ inline void row_matmuls(float (&sums)[4][4], const Matrix& a, const Matrix& b, int head_dim, Shared& s) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    for (int first = 0; first < head_dim; first += STEPS) {
        __syncthreads();
        load_columns(s.a, a, first, head_dim);
        load_columns(s.b, b, first, head_dim);
        __syncthreads();
        multiply(sums, s.a, s.b, min(STEPS, head_dim - first));
    }
}

// sums[c] += scores^T x[:, 64 c ..]; scores[step][row] are in shared memory, and the rows of x are the steps.
template <int CHUNKS>
__device__ inline void add_weighted_rows(float (&sums)[CHUNKS][4][4], const Matrix& x, int head_dim, Shared& s) {
    int steps = min(TILE, x.rows_end - x.row);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        if (chunk * TILE >= head_dim) break;
        for (int first = 0; first < steps; first += STEPS) {
            __syncthreads();
            load_rows(s.b, x, first, chunk * TILE, head_dim);
            __syncthreads();
            multiply(sums[chunk], s.scores + first * STRIDE, s.b, min(STEPS, steps - first));
        }
    }
}

// scores[first_row + i][first_column ..] = values[i]; the barrier before the next matmul makes them visible.
__device__ inline void store_scores(Shared& s, int first_row, int first_column, const float (&values)[4][4]) {
    float* start = s.scores + first_row * STRIDE + first_column;
    __syncthreads();
    for (int i = 0; i < 4; i++)
        *(float4*)(start + i * STRIDE) = make_float4(values[i][0], values[i][1], values[i][2], values[i][3]);
}

// out[4 y + i][64 c + 4 x + j] = factor[i] sums[c][i][j].
template <int CHUNKS>
__device__ inline void store(float* out, const Matrix& shape, int head_dim, const float (&sums)[CHUNKS][4][4],
                             const float (&factors)[4]) {
    for (int i = 0; i < 4; i++) {
        int row = shape.row + threadIdx.x / 16 * 4 + i;
        if (row >= shape.rows_end) return;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int column = chunk * TILE + threadIdx.x % 16 * 4 + j;
                if (column < head_dim) out[(long long)row * shape.width + column] = factors[i] * sums[chunk][i][j];
            }
    }
}

template <int CHUNKS>
__device__ inline void set_zero(float (&sums)[CHUNKS][4][4]) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) sums[chunk][i][j] = 0.0f;
}

// Overwrites scores with the exponentials of their differences from the largest, for 4 queries per thread. `max` and
// `sum` cover the keys so far; `factors` receives what earlier sums must be multiplied by.
__device__ inline void online_softmax(float (&scores)[4][4], float (&max)[4], float (&sum)[4], float (&factors)[4]) {
    for (int i = 0; i < 4; i++) {
        float largest = max[i];
        for (int j = 0; j < 4; j++) largest = fmaxf(largest, scores[i][j]);
        // The reduction covers the 16 threads that share a row of the tile.
        for (int d = 8; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
        factors[i] = expf(max[i] - largest);
        max[i] = largest;
        float added = 0.0f;
        for (int j = 0; j < 4; j++) added += scores[i][j] = expf(scores[i][j] - largest);
        for (int d = 8; d > 0; d /= 2) added += __shfl_xor_sync(0xffffffffu, added, d);
        sum[i] = sum[i] * factors[i] + added;
    }
}

// What the queries row .. row + 3 see; those beyond the tile see what its last one does.
__device__ inline void load_visible(int4 (&visible)[4], const Seen& seen, int row, int end) {
    for (int i = 0; i < 4; i++) visible[i] = seen.visible[min(row + i, end - 1)];
}

// A tile is {first query, queries' end, first key, keys' end}.
template <int CHUNKS, bool SOME>
__device__ inline void forward(float* out, float* lse, const float* q, const float* k, const float* v, int4 tile,
                               Seen seen, Shape shape) {
    __shared__ Shared s;
    int head = blockIdx.y, kv_head = shape.kv_head(head), dim = shape.head_dim;
    int y = threadIdx.x / 16 * 4, x = threadIdx.x % 16 * 4;
    float scale = shape.scale();
    Matrix queries = head_of(q, shape.heads, head, dim, tile.x, tile.y);
    float max[4], sum[4], factors[4], sums[CHUNKS][4][4];
    for (int i = 0; i < 4; i++) max[i] = __uint_as_float(0xff800000u), sum[i] = 0.0f;
    set_zero(sums);
    int4 visible[4];
    if (SOME) load_visible(visible, seen, tile.x + y, tile.y);
    attention::Stream<SOME, TILE> stream(tile, seen);
    for (int step = 0; step < stream.count; step++) {
        int row = stream.row(step);
        float scores[4][4], transposed[4][4];
        row_matmuls(scores, queries, head_of(k, shape.kv_heads, kv_head, dim, row, tile.w), dim, s);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                scores[i][j] = row + x + j < tile.w ? scores[i][j] * scale : __uint_as_float(0xff800000u);
                if (SOME && !seen.sees(visible[i], row + x + j)) scores[i][j] = attention::HIDDEN;
            }
        online_softmax(scores, max, sum, factors);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) transposed[j][i] = scores[i][j];
        store_scores(s, x, y, transposed);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sums[chunk][i][j] *= factors[i];
        add_weighted_rows(sums, head_of(v, shape.kv_heads, kv_head, dim, row, tile.w), dim, s);
    }
    for (int i = 0; i < 4; i++) {
        factors[i] = 1.0f / sum[i];
        int row = tile.x + y + i;
        if (x == 0 && row < tile.y) lse[(long long)head * shape.rows + row] = max[i] + logf(sum[i]);
    }
    store(out + (long long)head * dim, queries, dim, sums, factors);
}

// A tile is {first key, keys' end, first query, queries' end}. A block loops over all query heads that read its keys.
template <int CHUNKS, bool SOME>
__device__ inline void backward_keys(float* dk, float* dv, Saved saved, int4 tile, Seen seen, Shape shape) {
    __shared__ Shared s;
    int kv_head = blockIdx.y, dim = shape.head_dim, group = shape.heads / shape.kv_heads;
    int y = threadIdx.x / 16 * 4, x = threadIdx.x % 16 * 4;
    float scale = shape.scale();
    Matrix keys = head_of(saved.k, shape.kv_heads, kv_head, dim, tile.x, tile.y);
    Matrix values = head_of(saved.v, shape.kv_heads, kv_head, dim, tile.x, tile.y);
    float key_sums[CHUNKS][4][4], value_sums[CHUNKS][4][4];
    set_zero(key_sums);
    set_zero(value_sums);
    attention::Stream<SOME, TILE> stream(tile, seen);
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int step = 0; step < stream.count; step++) {
            int row = stream.row(step);
            int4 visible[4];
            if (SOME) load_visible(visible, seen, row + y, tile.w);
            Matrix queries = head_of(saved.q, shape.heads, head, dim, row, tile.w);
            Matrix dout = head_of(saved.dout, shape.heads, head, dim, row, tile.w);
            float p[4][4], ds[4][4];
            row_matmuls(p, queries, keys, dim, s);
            row_matmuls(ds, dout, values, dim, s);
            for (int i = 0; i < 4; i++) {
                if (row + y + i >= tile.w) break;
                long long query = (long long)head * shape.rows + row + y + i;
                for (int j = 0; j < 4; j++) {
                    p[i][j] = expf(p[i][j] * scale - saved.lse[query]);
                    if (SOME && !seen.sees(visible[i], tile.x + x + j)) p[i][j] = 0.0f;
                    ds[i][j] = p[i][j] * (ds[i][j] - saved.delta[query]);
                }
            }
            store_scores(s, y, x, p);
            add_weighted_rows(value_sums, dout, dim, s);
            store_scores(s, y, x, ds);
            add_weighted_rows(key_sums, queries, dim, s);
        }
    float scales[4], ones[4];
    for (int i = 0; i < 4; i++) scales[i] = scale, ones[i] = 1.0f;
    store(dk + (long long)kv_head * dim, keys, dim, key_sums, scales);
    store(dv + (long long)kv_head * dim, values, dim, value_sums, ones);
}

// A tile is as in `forward`.
template <int CHUNKS, bool SOME>
__device__ inline void backward_queries(float* dq, Saved saved, int4 tile, Seen seen, Shape shape) {
    __shared__ Shared s;
    int head = blockIdx.y, kv_head = shape.kv_head(head), dim = shape.head_dim;
    int y = threadIdx.x / 16 * 4, x = threadIdx.x % 16 * 4;
    float scale = shape.scale();
    Matrix queries = head_of(saved.q, shape.heads, head, dim, tile.x, tile.y);
    Matrix dout = head_of(saved.dout, shape.heads, head, dim, tile.x, tile.y);
    float lse[4], delta[4], sums[CHUNKS][4][4];
    for (int j = 0; j < 4; j++) {
        int row = min(tile.x + x + j, tile.y - 1);
        lse[j] = saved.lse[(long long)head * shape.rows + row];
        delta[j] = saved.delta[(long long)head * shape.rows + row];
    }
    set_zero(sums);
    int4 visible[4];
    if (SOME) load_visible(visible, seen, tile.x + x, tile.y);
    attention::Stream<SOME, TILE> stream(tile, seen);
    for (int step = 0; step < stream.count; step++) {
        int row = stream.row(step);
        Matrix keys = head_of(saved.k, shape.kv_heads, kv_head, dim, row, tile.w);
        float p[4][4], ds[4][4];
        row_matmuls(p, keys, queries, dim, s);
        row_matmuls(ds, head_of(saved.v, shape.kv_heads, kv_head, dim, row, tile.w), dout, dim, s);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                ds[i][j] = expf(p[i][j] * scale - lse[j]) * (ds[i][j] - delta[j]);
                if (SOME && !seen.sees(visible[j], row + y + i)) ds[i][j] = 0.0f;
            }
        store_scores(s, y, x, ds);
        add_weighted_rows(sums, keys, dim, s);
    }
    float scales[4];
    for (int i = 0; i < 4; i++) scales[i] = scale;
    store(dq + (long long)head * dim, queries, dim, sums, scales);
}

}  // namespace attention_f32

extern "C" __global__ void attention_delta_f32(float* delta, const float* dout, const float* out, int heads,
                                               int head_dim, int rows) {
    attention_delta(delta, dout, out, heads, head_dim, rows);
}

// The kernels for each largest head_dim; the sums of its 64-column chunks are in registers. Each comes in two kinds: for
// queries that see their whole sequence, and for queries that see some of it.
#define ATTENTION_F32_KIND(NAME, DIM, SOME)                                                                           \
    extern "C" __global__ void __launch_bounds__(256) attention_forward_##NAME(                                       \
        float* out, float* lse, const float* q, const float* k, const float* v, const int4* tiles,                    \
        const int* offsets, const int* chunks, const int4* visible, int heads, int kv_heads, int head_dim,            \
        int rows) {                                                                                                   \
        attention_f32::forward<DIM / 64, SOME>(out, lse, q, k, v, tiles[blockIdx.x], {offsets, chunks, visible},      \
                                               {heads, kv_heads, head_dim, rows});                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, DIM <= 64 ? 2 : 1) attention_backward_keys_##NAME(              \
        float* dk, float* dv, const float* q, const float* k, const float* v, const float* dout, const float* lse,    \
        const float* delta, const int4* tiles, const int* offsets, const int* chunks, const int4* visible,            \
        int heads, int kv_heads, int head_dim, int rows) {                                                            \
        attention_f32::backward_keys<DIM / 64, SOME>(dk, dv, {q, k, v, dout, lse, delta}, tiles[blockIdx.x],          \
                                                     {offsets, chunks, visible}, {heads, kv_heads, head_dim, rows});  \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_queries_##NAME(                              \
        float* dq, const float* q, const float* k, const float* v, const float* dout, const float* lse,               \
        const float* delta, const int4* tiles, const int* offsets, const int* chunks, const int4* visible,            \
        int heads, int kv_heads, int head_dim, int rows) {                                                            \
        attention_f32::backward_queries<DIM / 64, SOME>(dq, {q, k, v, dout, lse, delta}, tiles[blockIdx.x],           \
                                                        {offsets, chunks, visible},                                   \
                                                        {heads, kv_heads, head_dim, rows});                           \
    }

ATTENTION_F32_KIND(f32_64, 64, false)
ATTENTION_F32_KIND(f32_128, 128, false)
ATTENTION_F32_KIND(f32_256, 256, false)
ATTENTION_F32_KIND(some_f32_64, 64, true)
ATTENTION_F32_KIND(some_f32_128, 128, true)
ATTENTION_F32_KIND(some_f32_256, 256, true)
