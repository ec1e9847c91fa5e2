// A matmul of f32 panels: 16 rows by 6 columns at a time, over all of k.
#include "gemm.h"

#include <string.h>

#include <vector>

namespace {

constexpr int64_t panel_rows = 16, panel_cols = 6;
using Eight = float __attribute__((vector_size(32)));

float load(const Strided& matrix, int64_t row, int64_t col) {
    int64_t at = row * matrix.row_stride + col * matrix.col_stride;
    if (!matrix.is_bf16) return static_cast<const float*>(matrix.data)[at];
    uint32_t word = uint32_t(static_cast<const uint16_t*>(matrix.data)[at]) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

uint32_t word_of(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return word;
}

// Rounds to the nearest bf16, ties to even; any NaN becomes 0x7fff, as on a GPU.
uint16_t bf16(float value) {
    uint32_t word = word_of(value);
    if (value != value) return 0x7fff;
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

void store(const Strided& matrix, int64_t row, int64_t col, float value) {
    int64_t at = row * matrix.row_stride + col * matrix.col_stride;
    void* data = const_cast<void*>(matrix.data);
    if (matrix.is_bf16) static_cast<uint16_t*>(data)[at] = bf16(value);
    else static_cast<float*>(data)[at] = value;
}

float round_away(float value, int bits) {
    if (bits == 0 || value - value != 0) return value;
    uint32_t word = (word_of(value) + (1u << (bits - 1))) & ~((1u << bits) - 1);
    memcpy(&value, &word, 4);
    return value;
}

// Packs panels of `width` rows: [panel][k][width], with zeros past the last row.
std::vector<float> pack(const Strided& matrix, int64_t rows, int64_t k, int64_t width, int rounding) {
    int64_t panels = (rows + width - 1) / width;
    std::vector<float> packed(panels * k * width + 8);
    for (int64_t row = 0; row < rows; row++) {
        float* out = &packed[row / width * k * width + row % width];
        for (int64_t i = 0; i < k; i++) out[i * width] = round_away(load(matrix, row, i), rounding);
    }
    return packed;
}

// This is inlined into functions for other targets, so that its vectors use their instructions.
inline __attribute__((always_inline)) void multiply_panels_inline(const float* a, const float* b, int64_t k,
                                                                  float* sums) {
    Eight total[panel_cols][2] = {};
    for (int64_t i = 0; i < k; i++, a += panel_rows, b += panel_cols) {
        Eight low, high;
        memcpy(&low, a, sizeof low);
        memcpy(&high, a + 8, sizeof high);
#pragma GCC unroll 6
        for (int64_t col = 0; col < panel_cols; col++) {
            total[col][0] += low * b[col];
            total[col][1] += high * b[col];
        }
    }
    memcpy(sums, total, sizeof total);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) void multiply_panels_avx2(const float* a, const float* b, int64_t k, float* sums) {
    multiply_panels_inline(a, b, k, sums);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
constexpr auto multiply_panels_avx2 = multiply_panels_inline;
bool has_avx2() { return false; }
#endif

void multiply_panels(const float* a, const float* b, int64_t k, float* sums) {
    static const bool is_wide = has_avx2();
    if (is_wide) multiply_panels_avx2(a, b, k, sums);
    else multiply_panels_inline(a, b, k, sums);
}

}  // namespace

void multiply(const Product& product) {
    const auto& [m, n, k, alpha, beta, rounding, a, b, c, d] = product;
    Strided b_transposed = {b.data, b.col_stride, b.row_stride, b.is_bf16};
    std::vector<float> a_panels = pack(a, m, k, panel_rows, rounding);
    std::vector<float> b_panels = pack(b_transposed, n, k, panel_cols, rounding);
    float sums[panel_cols][panel_rows];
    for (int64_t col = 0; col < n; col += panel_cols)
        for (int64_t row = 0; row < m; row += panel_rows) {
            multiply_panels(&a_panels[row * k], &b_panels[col * k], k, sums[0]);
            for (int64_t j = 0; j < panel_cols && col + j < n; j++)
                for (int64_t i = 0; i < panel_rows && row + i < m; i++) {
                    float value = alpha * sums[j][i];
                    if (beta != 0) value += beta * load(c, row + i, col + j);
                    store(d, row + i, col + j, value);
                }
        }
}
