// The matrix instructions and asynchronous copies of tensor-core kernels, with the fragment layouts that the PTX ISA
// gives for mma.m16n8k16 and ldmatrix. bf16 values are the upper 16 bits of an f32.
#pragma once

#include "fibers.h"

namespace emulated {

inline float bf16_to_float(unsigned bits) {
    unsigned word = bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static bool in_shared(const void* pointer, size_t bytes) {
    const unsigned char* p = static_cast<const unsigned char*>(pointer);
    return (p >= dynamic_shared && p + bytes <= dynamic_shared + now.shared_bytes) ||
           (p >= __start_emulated_shared && p + bytes <= __stop_emulated_shared);
}

static void check_shared_row(const void* pointer, const char* what) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) fail("%s: %p is not 16-byte aligned", what, pointer);
    if (!in_shared(pointer, 16)) fail("%s: %p is not in the block's shared memory", what, pointer);
}

struct MmaArguments {
    float* d;
    const unsigned *a, *b;
};

static void mma(void** lane_arguments, unsigned lanes) {
    if (lanes != ~0u) fail("mma_m16n8k16: only lanes %#x of the warp call it", lanes);
    alignas(16) float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const MmaArguments& own = *static_cast<MmaArguments*>(lane_arguments[lane]);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 2; i++) {
            unsigned shift = 16 * i;
            a[group][pair + i] = bf16_to_float(own.a[0] >> shift & 0xffff);
            a[group + 8][pair + i] = bf16_to_float(own.a[1] >> shift & 0xffff);
            a[group][pair + 8 + i] = bf16_to_float(own.a[2] >> shift & 0xffff);
            a[group + 8][pair + 8 + i] = bf16_to_float(own.a[3] >> shift & 0xffff);
            b[pair + i][group] = bf16_to_float(own.b[0] >> shift & 0xffff);
            b[pair + 8 + i][group] = bf16_to_float(own.b[1] >> shift & 0xffff);
            d[group][pair + i] = own.d[i];
            d[group + 8][pair + i] = own.d[2 + i];
        }
    }
    using Four = float __attribute__((vector_size(16)));
    for (int row = 0; row < 16; row++) {
        Four* sums = reinterpret_cast<Four*>(d[row]);
        Four left = sums[0], right = sums[1];
        for (int k = 0; k < 16; k++) {
            const Four* factors = reinterpret_cast<const Four*>(b[k]);
            left += a[row][k] * factors[0];
            right += a[row][k] * factors[1];
        }
        sums[0] = left;
        sums[1] = right;
    }
    for (int lane = 0; lane < 32; lane++) {
        float* own = static_cast<MmaArguments*>(lane_arguments[lane])->d;
        for (int i = 0; i < 4; i++) own[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

struct LoadArguments {
    unsigned* registers;
    const void* row;
};

template <int matrices, bool transposed>
void load_matrix(void** lane_arguments, unsigned lanes) {
    if (lanes != ~0u) fail("load_matrix: only lanes %#x of the warp call it", lanes);
    auto argument = [&](int lane) { return static_cast<LoadArguments*>(lane_arguments[lane]); };
    uint16_t rows[matrices * 8][8];
    for (int lane = 0; lane < matrices * 8; lane++) {
        check_shared_row(argument(lane)->row, "load_matrix");
        memcpy(rows[lane], argument(lane)->row, 16);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < matrices; m++) {
            int i = lane / 4, j = lane % 4 * 2;
            unsigned low = transposed ? rows[m * 8 + j][i] : rows[m * 8 + i][j];
            unsigned high = transposed ? rows[m * 8 + j + 1][i] : rows[m * 8 + i][j + 1];
            argument(lane)->registers[m] = low | high << 16;
        }
}

// The copy happens when its thread waits for it; until then the destination holds NaNs.
static void begin_copy(void* shared, const void* global) {
    check_shared_row(shared, "copy_async_16");
    if (reinterpret_cast<uintptr_t>(global) % 16) fail("copy_async_16: global %p is not 16-byte aligned", global);
    memset(shared, 0xff, 16);
    running().copies.push_back({shared, global, running().copy_group});
}

static void finish_copies(unsigned pending_groups) {
    Lane& lane = running();
    size_t left = 0;
    for (const PendingCopy& copy : lane.copies) {
        if (copy.group + pending_groups >= lane.copy_group) lane.copies[left++] = copy;
        else if (copy.from) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    lane.copies.resize(left);
}

}  // namespace emulated

// d += a b for the warp's 16 x 16 matrix a and 16 x 8 matrix b in bf16.
static inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulated::MmaArguments arguments = {d, a, b};
    emulated::meet(~0u, emulated::mma, &arguments);
}

// Lane l gives the address of row l % 8 of matrix l / 8.
static inline void load_matrix_x4(unsigned (&r)[4], const void* row) {
    emulated::LoadArguments arguments = {r, row};
    emulated::meet(~0u, emulated::load_matrix<4, false>, &arguments);
}
static inline void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
    emulated::LoadArguments arguments = {r, row};
    emulated::meet(~0u, emulated::load_matrix<4, true>, &arguments);
}
static inline void load_matrix_x2(unsigned (&r)[2], const void* row) {
    emulated::LoadArguments arguments = {r, row};
    emulated::meet(~0u, emulated::load_matrix<2, false>, &arguments);
}
static inline void load_matrix_x2_transposed(unsigned (&r)[2], const void* row) {
    emulated::LoadArguments arguments = {r, row};
    emulated::meet(~0u, emulated::load_matrix<2, true>, &arguments);
}

static inline void copy_async_16(void* shared, const void* global) { emulated::begin_copy(shared, global); }
static inline void copy_async_16_or_zero(void* shared, const void* global, bool is_there) {
    emulated::begin_copy(shared, is_there ? global : nullptr);
}
static inline void copy_async_commit() { emulated::running().copy_group++; }
// Waits until at most the last N committed groups are still in flight.
template <int N>
static inline void copy_async_wait() {
    emulated::finish_copies(N);
}
