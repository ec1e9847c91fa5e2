// The reductions of collectives, with NCCL's numbers for types and operations.
#pragma once

#include <stddef.h>

constexpr int op_sum = 0, op_prod = 1, op_max = 2, op_min = 3, op_avg = 4;

size_t element_bytes(int type);  // 0 for a type that is not emulated
// total = total op part
void reduce_into(void* total, const void* part, size_t count, int type, int op);
void divide(void* total, size_t count, int type, int divisor);
