// d = alpha a b + beta c over matrices with any strides.
#pragma once

#include <stdint.h>

struct Strided {
    const void* data;
    int64_t row_stride, col_stride;  // in elements
    bool is_bf16;                    // otherwise f32
};

struct Product {
    int64_t m, n, k;
    float alpha, beta;
    int rounding;  // how many low bits of the operands' f32 words are rounded away
    Strided a, b, c, d;
};

void multiply(const Product& product);
