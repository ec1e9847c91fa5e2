// The CUDA driver's calls that allocate, copy and fill memory. Every call does its work before it returns.
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "driver.h"

namespace {

CUresult copy(void* to, const void* from, size_t bytes, const char* caller, const char* event) {
    memcpy(to, from, bytes);
    emulated_cuda_verify(caller);
    emulated_cuda_log("%s %zu", event, bytes);
    return CUDA_SUCCESS;
}

template <class T>
CUresult fill(void* to, T value, size_t count, const char* caller) {
    if (emulated_cuda_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    emulated_cuda_check(to, count * sizeof value, caller);
    T* words = static_cast<T*>(to);
    for (size_t i = 0; i < count; i++) words[i] = value;
    emulated_cuda_verify(caller);
    emulated_cuda_log("memset %zu", count * sizeof value);
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    if (emulated_cuda_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    const Memory& memory = memory_of(emulated_cuda_device());
    *free_bytes = memory.total - memory.used;
    return *total = memory.total, CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(void** pointer, size_t bytes) {
    int device = emulated_cuda_device();
    return device < 0 ? CUDA_ERROR_INVALID_CONTEXT : allocate(device, bytes, pointer, nullptr);
}
CUresult cuMemAllocManaged(void** pointer, size_t bytes, unsigned) { return cuMemAlloc_v2(pointer, bytes); }
CUresult cuMemAllocAsync(void** pointer, size_t bytes, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    return allocate(emulated_cuda_device(), bytes, pointer, stream);
}
CUresult cuMemAllocFromPoolAsync(void** pointer, size_t bytes, Memory*, void* stream) {
    return cuMemAllocAsync(pointer, bytes, stream);
}
CUresult cuMemFree_v2(void* pointer) { return pointer ? release(pointer, "cuMemFree") : CUDA_SUCCESS; }
CUresult cuMemFreeAsync(void* pointer, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    if (!pointer) return CUDA_ERROR_INVALID_VALUE;
    emulated_cuda_use(pointer, stream, "cuMemFreeAsync");
    return release(pointer, "cuMemFreeAsync");
}

CUresult cuDeviceGetDefaultMemPool(Memory** pool, int device) {
    if (device < 0 || device >= max_devices) return CUDA_ERROR_INVALID_DEVICE;
    return *pool = &memory_of(device), CUDA_SUCCESS;
}
CUresult cuDeviceGetMemPool(Memory** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
CUresult cuMemPoolTrimTo(Memory*, size_t) { return CUDA_SUCCESS; }
CUresult cuMemPoolSetAttribute(Memory* pool, int attribute, const uint64_t*) {
    if (attribute == 6 || attribute == 8) pool->used_high = pool->used;  // RESERVED_ and USED_MEM_HIGH
    return CUDA_SUCCESS;
}
CUresult cuMemPoolGetAttribute(const Memory* pool, int attribute, void* value) {
    if (attribute < 4) return *static_cast<int*>(value) = 1, CUDA_SUCCESS;
    bool is_high = attribute == 6 || attribute == 8;
    *static_cast<uint64_t*>(value) = attribute == 4 ? 0 : is_high ? pool->used_high : pool->used;
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    if (emulated_cuda_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (posix_memalign(pointer, 4096, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*pointer, 0xff, bytes);
    emulated_cuda_log("host_alloc %zu", bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
CUresult cuMemFreeHost(void* pointer) { return free(pointer), CUDA_SUCCESS; }
CUresult cuMemHostGetDevicePointer_v2(void** device, void* host, unsigned) { return *device = host, CUDA_SUCCESS; }
CUresult cuMemHostRegister_v2(void*, size_t, unsigned) { return CUDA_SUCCESS; }
CUresult cuMemHostUnregister(void*) { return CUDA_SUCCESS; }

CUresult cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_check(to, bytes, "cuMemcpyHtoD");
    emulated_cuda_use(to, stream, "cuMemcpyHtoD");
    return copy(to, from, bytes, "cuMemcpyHtoD", "htod");
}
CUresult cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_check(from, bytes, "cuMemcpyDtoH");
    emulated_cuda_use(from, stream, "cuMemcpyDtoH");
    return copy(to, from, bytes, "cuMemcpyDtoH", "dtoh");
}
CUresult cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_check(from, bytes, "cuMemcpyDtoD");
    emulated_cuda_check(to, bytes, "cuMemcpyDtoD");
    for (const void* used : {from, const_cast<const void*>(to)}) emulated_cuda_use(used, stream, "cuMemcpyDtoD");
    return copy(to, from, bytes, "cuMemcpyDtoD", "dtod");
}
CUresult cuMemcpyHtoD_v2(void* to, const void* from, size_t n) { return cuMemcpyHtoDAsync_v2(to, from, n, nullptr); }
CUresult cuMemcpyDtoH_v2(void* to, const void* from, size_t n) { return cuMemcpyDtoHAsync_v2(to, from, n, nullptr); }
CUresult cuMemcpyDtoD_v2(void* to, const void* from, size_t n) { return cuMemcpyDtoDAsync_v2(to, from, n, nullptr); }
CUresult cuMemcpyPeerAsync(void* to, void*, const void* from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

CUresult cuMemsetD8_v2(void* to, uint8_t value, size_t count) { return fill(to, value, count, "cuMemsetD8"); }
CUresult cuMemsetD16_v2(void* to, uint16_t value, size_t count) { return fill(to, value, count, "cuMemsetD16"); }
CUresult cuMemsetD32_v2(void* to, uint32_t value, size_t count) { return fill(to, value, count, "cuMemsetD32"); }
CUresult cuMemsetD8Async(void* to, uint8_t value, size_t count, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_use(to, stream, "cuMemsetD8");
    return cuMemsetD8_v2(to, value, count);
}
CUresult cuMemsetD16Async(void* to, uint16_t value, size_t count, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_use(to, stream, "cuMemsetD16");
    return cuMemsetD16_v2(to, value, count);
}
CUresult cuMemsetD32Async(void* to, uint32_t value, size_t count, void* stream) {
    if (CUresult error = check_stream(stream)) return error;
    emulated_cuda_use(to, stream, "cuMemsetD32");
    return cuMemsetD32_v2(to, value, count);
}

}  // extern "C"
