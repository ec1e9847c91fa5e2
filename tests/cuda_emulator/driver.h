// The interfaces between the emulator's libraries and compiled modules.
#pragma once

#include <stddef.h>
#include <stdint.h>

// How a kernel of a module is launched; the module's source includes this header too.
struct EmulatedShape {
    unsigned grid[3], block[3];
    size_t shared_bytes;
    // Writes a sentence about the address, such as which allocation it lies next to.
    void (*describe)(const void* address, char* text, size_t bytes);
    // The stream of the launch, and the function that is called with each pointer passed to the kernel; null in plain
    // C++ tests.
    const void* stream;
    void (*use)(const void* address, const void* stream, const char* user);
};

extern "C" {
// Aborts with a sentence unless the bytes lie inside one live device allocation.
void emulated_cuda_check(const void* device, size_t bytes, const char* caller);
// Aborts if a stream uses an allocation that another stream used, without having waited for that use.
void emulated_cuda_use(const void* device, const void* stream, const char* user);
// Aborts if bytes next to an allocation were overwritten; `writer` names what ran last.
void emulated_cuda_verify(const char* writer);
// Appends a line to EMULATED_CUDA_LOG.
void emulated_cuda_log(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The device of the calling thread's context, or -1.
int emulated_cuda_device();
// The index of that device among the machine's devices, from which CUDA_VISIBLE_DEVICES selects.
int emulated_cuda_physical_device();
}

enum CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_SUPPORTED = 801,
};

constexpr int max_devices = 16;

struct Memory {
    size_t total, used, used_high;
};

// How much of each stream's work is known to be done, as a count of the stream's uses.
constexpr int max_streams = 16;
struct Clock {
    uint64_t done[max_streams];

    void wait_for(const Clock& other) {
        for (int i = 0; i < max_streams; i++)
            if (other.done[i] > done[i]) done[i] = other.done[i];
    }
};

// Defined in memory.cc:
CUresult allocate(int device, size_t bytes, void** pointer, const void* stream);
CUresult release(void* pointer, const char* caller);
Memory& memory_of(int device);
void add_global(void* data, size_t bytes);
void remove_global(void* data);
void describe_address(const void* address, char* text, size_t bytes);

// Defined in driver.cc:
int compute_capability();  // 90 for 9.0
int max_optin_shared();
// Returns a stream's number and counts its next use; `known` gets what the stream has waited for, itself included.
int next_use(const void* stream, Clock* known);
// Whether the calling thread may use this stream.
CUresult check_stream(const void* stream);
