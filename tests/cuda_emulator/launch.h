// Runs a kernel over its grid, one block after another.
#pragma once

#include <stdlib.h>

#include "crash.h"
#include "fibers.h"

namespace emulated {

static Order order_of_environment() {
    const char* order = getenv("EMULATED_CUDA_ORDER");
    if (!order || !strcmp(order, "forward")) return Order::forward;
    if (!strcmp(order, "reverse")) return Order::reverse;
    if (!strcmp(order, "shuffled")) return Order::shuffled;
    fail("EMULATED_CUDA_ORDER is %s, neither forward, reverse nor shuffled", order);
}

}  // namespace emulated

template <class Body>
static void emulated_launch(const EmulatedShape& shape, Body&& body, const char* kernel) {
    using namespace emulated;
    now.kernel = kernel;
    now.body = [](void* data) { (*static_cast<std::remove_reference_t<Body>*>(data))(); };
    now.body_data = &body;
    now.shared_bytes = shape.shared_bytes;
    now.describe = shape.describe;
    now.order = order_of_environment();
    static unsigned launches = 0;
    now.random = 0x9e3779b9 * (2 * launches++ + 1);  // never zero
    gridDim = {shape.grid[0], shape.grid[1], shape.grid[2]};
    blockDim = {shape.block[0], shape.block[1], shape.block[2]};
    if (now.shared_bytes > max_dynamic_shared) fail("%zu bytes of shared memory", now.shared_bytes);
    index_lanes();
    CrashHandler handler;
    size_t blocks = size_t(gridDim.x) * gridDim.y * gridDim.z;
    size_t shift = next_random();
    for (size_t turn = 0; turn < blocks; turn++) {
        size_t b = in_order(turn, blocks, shift);
        blockIdx = {unsigned(b % gridDim.x), unsigned(b / gridDim.x % gridDim.y),
                    unsigned(b / gridDim.x / gridDim.y)};
        run_block();
    }
}

// For plain C++ tests: runs `body`, which calls a kernel, in every thread of the grid.
template <class Body>
static void emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, Body&& body,
                            const char* kernel = "kernel") {
    EmulatedShape shape = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, nullptr};
    emulated_launch(shape, body, kernel);
}
