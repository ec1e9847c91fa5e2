// The CUDA driver's devices, contexts, streams and events. Every call does its work before it returns.
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <mutex>
#include <set>
#include <vector>

namespace {

struct Context {
    int device;
};
struct Stream {
    int device, priority;
    int number;
    Clock clock;
};
struct Event {
    unsigned flags;
    bool is_recorded;
    double seconds;
    Clock clock;
};

Context contexts[max_devices];
thread_local Context* current = nullptr;
bool is_initialized = false;

std::mutex handles_lock;
std::set<const void*> streams, events;
Stream default_stream = {};
int stream_count = 1;
Clock seen_by_host = {};  // the work that a thread has waited for: whatever it asks for next comes after it

// The handles null, 1 and 2 are the default streams.
Stream& stream_at(const void* stream) {
    if (reinterpret_cast<uintptr_t>(stream) <= 2) return default_stream;
    return *static_cast<Stream*>(const_cast<void*>(stream));
}

void host_waits_for(const Clock& clock) {
    std::lock_guard<std::mutex> guard(handles_lock);
    seen_by_host.wait_for(clock);
}

bool has(const std::set<const void*>& handles, const void* handle) {
    std::lock_guard<std::mutex> guard(handles_lock);
    return handles.count(handle);
}

// The machine's devices that this process sees, according to EMULATED_CUDA_DEVICES and CUDA_VISIBLE_DEVICES.
std::vector<int> visible_devices() {
    const char* number = getenv("EMULATED_CUDA_DEVICES");
    const char* list = getenv("CUDA_VISIBLE_DEVICES");
    int count = number ? atoi(number) : 1;
    std::vector<int> visible;
    for (int i = 0; !list && i < count && i < max_devices; i++) visible.push_back(i);
    while (list && *list) {
        char* end;
        int device = strtol(list, &end, 10);
        if (end == list || device < 0 || device >= count) break;  // the real driver ends its list here, too
        visible.push_back(device);
        list = *end == ',' ? end + 1 : end;
    }
    return visible;
}

int device_count() {
    static const int count = visible_devices().size();
    return count;
}

bool is_device(int device) { return device >= 0 && device < device_count(); }

double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

struct ErrorText {
    CUresult code;
    const char *name, *text;
};
const ErrorText error_texts[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

const ErrorText* find_error(CUresult code) {
    for (const ErrorText& error : error_texts)
        if (error.code == code) return &error;
    return nullptr;
}

int attribute(int attribute) {
    switch (attribute) {
        case 1: case 2: case 3: return 1024;    // MAX_THREADS_PER_BLOCK, MAX_BLOCK_DIM_X, _Y
        case 4: return 64;                      // MAX_BLOCK_DIM_Z
        case 5: return 0x7fffffff;              // MAX_GRID_DIM_X
        case 6: case 7: return 65535;           // MAX_GRID_DIM_Y, _Z
        case 8: return 48 * 1024;               // MAX_SHARED_MEMORY_PER_BLOCK
        case 10: return 32;                     // WARP_SIZE
        case 12: case 82: return 65536;         // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
        case 13: case 36: return 1000000;       // CLOCK_RATE, MEMORY_CLOCK_RATE, in kHz
        case 16: return 4;                      // MULTIPROCESSOR_COUNT
        case 19: case 41: return 1;             // CAN_MAP_HOST_MEMORY, UNIFIED_ADDRESSING
        case 37: return 64;                     // GLOBAL_MEMORY_BUS_WIDTH
        case 38: return 4 << 20;                // L2_CACHE_SIZE
        case 39: return 2048;                   // MAX_THREADS_PER_MULTIPROCESSOR
        case 75: return compute_capability() / 10;
        case 76: return compute_capability() % 10;
        case 81: return max_optin_shared() + 1024;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 97: return max_optin_shared();         // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 106: return 32;                        // MAX_BLOCKS_PER_MULTIPROCESSOR
        case 111: return 1024;                      // RESERVED_SHARED_MEMORY_PER_BLOCK
        case 115: return 1;                         // MEMORY_POOLS_SUPPORTED
        default: return 0;
    }
}

CUresult sync(const char* what) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    emulated_cuda_log("sync %s", what);
    return CUDA_SUCCESS;
}

}  // namespace

int compute_capability() {
    const char* text = getenv("EMULATED_CUDA_CAPABILITY");
    int major = 9, minor = 0;
    if (text && sscanf(text, "%d.%d", &major, &minor) != 2) fputs("EMULATED_CUDA_CAPABILITY is not like 9.0\n", stderr);
    return major * 10 + minor;
}

int max_optin_shared() {
    switch (compute_capability()) {
        case 75: return 64 << 10;
        case 80: case 87: return 163 << 10;
        case 86: case 89: case 120: case 121: return 99 << 10;
        default: return 227 << 10;
    }
}

int next_use(const void* stream, Clock* known) {
    std::lock_guard<std::mutex> guard(handles_lock);
    Stream& own = stream_at(stream);
    own.clock.wait_for(seen_by_host);
    own.clock.done[own.number]++;
    *known = own.clock;
    return own.number;
}

static bool is_stream(const void* stream) { return reinterpret_cast<uintptr_t>(stream) <= 2 || has(streams, stream); }

CUresult check_stream(const void* stream) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return is_stream(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

extern "C" {

int emulated_cuda_device() { return current ? current->device : -1; }
int emulated_cuda_physical_device() { return current ? visible_devices()[current->device] : -1; }

CUresult cuInit(unsigned) {
    if (device_count() <= 0) return CUDA_ERROR_NO_DEVICE;
    for (int i = 0; i < max_devices; i++) contexts[i].device = i;
    is_initialized = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }

CUresult cuGetErrorName(CUresult code, const char** name) {
    const ErrorText* error = find_error(code);
    *name = error ? error->name : nullptr;
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult code, const char** text) {
    const ErrorText* error = find_error(code);
    *text = error ? error->text : nullptr;
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Devices.

CUresult cuDeviceGetCount(int* count) {
    if (!is_initialized) return CUDA_ERROR_NOT_INITIALIZED;
    return *count = device_count(), CUDA_SUCCESS;
}

CUresult cuDeviceGet(int* device, int ordinal) {
    if (!is_initialized) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    return *device = ordinal, CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int bytes, int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    return snprintf(name, bytes, "Emulated CUDA device"), CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(unsigned char (*uuid)[16], int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid, "emulated device", 15);
    (*uuid)[15] = visible_devices()[device];
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(unsigned char (*uuid)[16], int device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDeviceGetAttribute(int* value, int which, int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    return *value = attribute(which), CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    return *bytes = memory_of(device).total, CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int* can, int, int) { return *can = 1, CUDA_SUCCESS; }

// Contexts: each device has a primary one, and other contexts share the device's memory.

CUresult cuDevicePrimaryCtxRetain(Context** context, int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    return *context = &contexts[device], CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return CUDA_SUCCESS; }
CUresult cuCtxCreate_v4(Context** context, void*, unsigned, int device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    return current = *context = new Context{device}, CUDA_SUCCESS;
}
CUresult cuCtxDestroy_v2(Context* context) {
    if (current == context) current = nullptr;
    return delete context, CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(Context* context) { return current = context, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(Context** context) { return *context = current, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(int* device) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return *device = current->device, CUDA_SUCCESS;
}
CUresult cuCtxSetFlags(unsigned) { return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuCtxSetLimit(int, size_t) { return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuCtxGetLimit(size_t* value, int) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
CUresult cuCtxGetCacheConfig(int* config) { return *config = 0, CUDA_SUCCESS; }
CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return sync("context"); }

// Streams and events.

CUresult cuStreamCreateWithPriority(Stream** stream, unsigned, int priority) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    std::lock_guard<std::mutex> guard(handles_lock);
    if (stream_count == max_streams) return CUDA_ERROR_OUT_OF_MEMORY;
    streams.insert(*stream = new Stream{current->device, priority, stream_count++, {}});
    return CUDA_SUCCESS;
}
CUresult cuStreamCreate(Stream** stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
CUresult cuStreamDestroy_v2(Stream* stream) {
    std::lock_guard<std::mutex> guard(handles_lock);
    if (!streams.erase(stream)) return CUDA_ERROR_INVALID_HANDLE;
    return delete stream, CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(Stream* stream) {
    if (CUresult error = check_stream(stream)) return error;
    host_waits_for(stream_at(stream).clock);
    return sync("stream");
}
CUresult cuStreamQuery(Stream* stream) { return check_stream(stream); }
CUresult cuStreamIsCapturing(Stream* stream, int* status) { return *status = 0, check_stream(stream); }
CUresult cuStreamBeginCapture_v2(Stream*, int) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuStreamEndCapture(Stream*, void**) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    if (!has(events, event)) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = check_stream(stream)) return error;
    std::lock_guard<std::mutex> guard(handles_lock);
    stream_at(stream).clock.wait_for(event->clock);
    return CUDA_SUCCESS;
}
CUresult cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* argument) {
    if (CUresult error = check_stream(stream)) return error;
    return function(argument), CUDA_SUCCESS;
}

CUresult cuEventCreate(Event** event, unsigned flags) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    std::lock_guard<std::mutex> guard(handles_lock);
    events.insert(*event = new Event{flags, false, 0, {}});
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy_v2(Event* event) {
    std::lock_guard<std::mutex> guard(handles_lock);
    if (!events.erase(event)) return CUDA_ERROR_INVALID_HANDLE;
    return delete event, CUDA_SUCCESS;
}
CUresult cuEventRecord(Event* event, Stream* stream) {
    if (CUresult error = check_stream(stream)) return error;
    if (!has(events, event)) return CUDA_ERROR_INVALID_HANDLE;
    event->is_recorded = true;
    event->seconds = seconds();
    std::lock_guard<std::mutex> guard(handles_lock);
    event->clock = stream_at(stream).clock;
    event->clock.wait_for(seen_by_host);
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(Event* event) {
    if (!has(events, event)) return CUDA_ERROR_INVALID_HANDLE;
    return host_waits_for(event->clock), CUDA_SUCCESS;
}
CUresult cuEventSynchronize(Event* event) {
    if (!has(events, event)) return CUDA_ERROR_INVALID_HANDLE;
    return host_waits_for(event->clock), sync("event");
}
CUresult cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    constexpr unsigned disable_timing = 2;
    for (Event* event : {start, end})
        if (!has(events, event) || !event->is_recorded || event->flags & disable_timing)
            return CUDA_ERROR_INVALID_HANDLE;
    return *milliseconds = 1e3 * (end->seconds - start->seconds), CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

CUresult cuProfilerStart() { return CUDA_SUCCESS; }
CUresult cuProfilerStop() { return CUDA_SUCCESS; }

}  // extern "C"
