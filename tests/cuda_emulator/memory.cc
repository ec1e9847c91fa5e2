// Device memory: allocations between inaccessible pages, filled with NaNs, and the checks that every copy and launch
// makes. Freed memory becomes inaccessible and keeps its address for a long time.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <array>
#include <deque>
#include <map>
#include <mutex>

#include "driver.h"

namespace {

constexpr size_t page = 4096, fence_bytes = 64 * 1024, alignment = 256, front_guard = 256;
constexpr size_t max_quarantine = size_t(64) << 30;  // bytes of addresses, which hold no memory
constexpr uint16_t guard_word = 0xffc5;              // a NaN as bf16, f32 and f64

struct Allocation {
    char* data;
    size_t bytes, counted_bytes;
    int device;
    char* region;
    size_t region_bytes;
    uint64_t uses[max_streams];  // the last use by each stream

    char* begin() const { return data - front_guard; }
    char* end() const { return region + region_bytes - fence_bytes; }
};

std::recursive_mutex lock;
using Allocations = std::map<uintptr_t, Allocation>;  // keyed by the start of their region
Allocations live, freed;
std::map<const char*, size_t> globals;  // the modules' constants, which copies may write
std::deque<uintptr_t> quarantine;
size_t quarantine_bytes = 0;

[[noreturn]] void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    fputs("emulated CUDA: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    abort();
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// The allocation whose region contains the address, fences included.
const Allocation* find(const Allocations& allocations, const void* address) {
    auto next = allocations.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (next == allocations.begin()) return nullptr;
    const Allocation& found = std::prev(next)->second;
    return static_cast<const char*>(address) < found.region + found.region_bytes ? &found : nullptr;
}

bool is_in_global(const char* data, size_t bytes) {
    auto next = globals.upper_bound(data);
    return next != globals.begin() && data + bytes <= std::prev(next)->first + std::prev(next)->second;
}

void describe(const void* address, char* text, size_t bytes) {
    const Allocation* near = find(live, address);
    const Allocation* gone = find(freed, address);
    const char* p = static_cast<const char*>(address);
    if (gone) snprintf(text, bytes, "in freed memory of %zu bytes", gone->bytes);
    else if (!near) snprintf(text, bytes, "which is no device memory");
    else if (p < near->data)
        snprintf(text, bytes, "%zu bytes before an allocation of %zu bytes", size_t(near->data - p), near->bytes);
    else snprintf(text, bytes, "at byte %zu of an allocation of %zu bytes", size_t(p - near->data), near->bytes);
}

// What the guard that begins at this address contains.
const char* guard_bytes(const char* address) {
    static const auto words = [] {
        std::array<uint16_t, 256> all;
        all.fill(guard_word);
        return all;
    }();
    return reinterpret_cast<const char*>(words.data()) + reinterpret_cast<uintptr_t>(address) % 2;
}

void fill_guard(char* from, char* to) { memcpy(from, guard_bytes(from), to - from); }

void verify(const Allocation& allocation, const char* from, const char* to, const char* writer) {
    const char* wanted = guard_bytes(from);
    if (!memcmp(from, wanted, to - from)) return;
    for (; from < to; from++, wanted++)
        if (*from != *wanted)
            fail("%s wrote at byte %td of an allocation of %zu bytes", writer, from - allocation.data,
                 allocation.bytes);
}

void verify(const Allocation& allocation, const char* writer) {
    verify(allocation, allocation.begin(), allocation.data, writer);
    verify(allocation, allocation.data + allocation.bytes, allocation.end(), writer);
}

void limit_quarantine() {
    while (quarantine_bytes > max_quarantine) {
        auto oldest = freed.find(quarantine.front());
        quarantine.pop_front();
        quarantine_bytes -= oldest->second.region_bytes;
        munmap(oldest->second.region, oldest->second.region_bytes);
        freed.erase(oldest);
    }
}

size_t memory_of_environment() {
    const char* bytes = getenv("EMULATED_CUDA_MEMORY");
    return bytes ? strtoull(bytes, nullptr, 10) : size_t(4) << 30;
}

}  // namespace

Memory& memory_of(int device) {
    static Memory memories[max_devices];
    if (!memories[device].total) memories[device].total = memory_of_environment();
    return memories[device];
}

// The data end at the start of a fence, except for padding to their alignment.
CUresult allocate(int device, size_t bytes, void** pointer, const void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    Memory& memory = memory_of(device);
    size_t counted = round_up(bytes, 512);
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (counted < bytes || counted > memory.total - memory.used) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t inner = round_up(round_up(bytes, alignment) + front_guard, page);
    size_t region_bytes = inner + 2 * fence_bytes;
    void* region = mmap(nullptr, region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    char* start = static_cast<char*>(region) + fence_bytes;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE;
    if (mmap(start, inner, PROT_READ | PROT_WRITE, flags, -1, 0) != start)
        fail("the machine has no memory or no mapping left for %zu bytes", bytes);
    char* data = start + inner - round_up(bytes, alignment);
    Allocation allocation = {data, bytes, counted, device, static_cast<char*>(region), region_bytes, {}};
    Clock known;
    int number = next_use(stream, &known);
    allocation.uses[number] = known.done[number];
    fill_guard(allocation.begin(), data);
    memset(data, 0xff, bytes);
    fill_guard(data + bytes, allocation.end());
    live[reinterpret_cast<uintptr_t>(region)] = allocation;
    memory.used += counted;
    if (memory.used > memory.used_high) memory.used_high = memory.used;
    *pointer = data;
    emulated_cuda_log("alloc %zu", bytes);
    return CUDA_SUCCESS;
}

CUresult release(void* pointer, const char* caller) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    const Allocation* found = find(live, pointer);
    if (!found || found->data != pointer) {
        char text[200];
        describe(pointer, text, sizeof text);
        fail("%s: %p does not begin a live allocation: %s", caller, pointer, text);
    }
    Allocation gone = *found;
    verify(gone, "something before this free");
    mmap(gone.region, gone.region_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    uintptr_t key = reinterpret_cast<uintptr_t>(gone.region);
    live.erase(key);
    freed[key] = gone;
    memory_of(gone.device).used -= gone.counted_bytes;
    quarantine.push_back(key);
    quarantine_bytes += gone.region_bytes;
    emulated_cuda_log("free %zu", gone.bytes);
    limit_quarantine();
    return CUDA_SUCCESS;
}

void add_global(void* data, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    globals[static_cast<char*>(data)] = bytes;
}

void remove_global(void* data) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    globals.erase(static_cast<char*>(data));
}

// This takes no lock, because the thread that crashed may hold it.
void describe_address(const void* address, char* text, size_t bytes) { describe(address, text, bytes); }

extern "C" {

void emulated_cuda_check(const void* device, size_t bytes, const char* caller) {
    if (bytes == 0) return;
    std::lock_guard<std::recursive_mutex> guard(lock);
    const Allocation* found = find(live, device);
    const char* p = static_cast<const char*>(device);
    if (found && p >= found->data && p < found->data + found->bytes &&
        bytes <= size_t(found->data + found->bytes - p))
        return;
    if (is_in_global(p, bytes)) return;
    char text[200];
    describe(device, text, sizeof text);
    fail("%s: %zu bytes from %p, %s", caller, bytes, device, text);
}

void emulated_cuda_use(const void* device, const void* stream, const char* user) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    const Allocation* found = find(live, device);
    if (!found) return;
    Allocation& used = live[reinterpret_cast<uintptr_t>(found->region)];
    Clock known;
    int number = next_use(stream, &known);
    for (int other = 0; other < max_streams; other++)
        if (used.uses[other] > known.done[other])
            fail("%s uses an allocation of %zu bytes on stream %d, which has not waited for its use on stream %d", user,
                 used.bytes, number, other);
    used.uses[number] = known.done[number];
}

void emulated_cuda_verify(const char* writer) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (const auto& [start, allocation] : live) verify(allocation, writer);
}

void emulated_cuda_log(const char* format, ...) {
    static const char* path = getenv("EMULATED_CUDA_LOG");
    if (!path) return;
    std::lock_guard<std::recursive_mutex> guard(lock);
    static FILE* file = fopen(path, "a");
    if (!file) fail("EMULATED_CUDA_LOG: %s does not open", path);
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    fflush(file);
}

}  // extern "C"
