// The CUDA driver's modules, functions and launches. A module is a shared object that the emulated
// NVRTC compiled; for a kernel NAME it exports emulated_launch_NAME and emulated_threads_NAME.
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "driver.h"

namespace {

constexpr int default_shared = 48 << 10;

struct Function {
    void (*launch)(const EmulatedShape&, void** arguments);
    std::string name;
    int max_threads, max_dynamic_shared;
};

struct Module {
    void* library;
    std::map<std::string, Function> functions;
    std::vector<void*> globals;
};

std::recursive_mutex launches;  // held by calls on a module, because a module's kernels share their state

// The size in bytes of an ELF file, whose section headers come last.
size_t image_bytes(const void* image) {
    const auto* header = static_cast<const Elf64_Ehdr*>(image);
    return header->e_shoff + size_t(header->e_shentsize) * header->e_shnum;
}

void* open_image(const void* image) {
    const char* folder = getenv("TMPDIR");
    std::string path = std::string(folder ? folder : "/tmp") + "/emulated_cuda_XXXXXX";
    int file = mkstemp(path.data());
    if (file < 0) return nullptr;
    size_t left = image_bytes(image);
    const char* from = static_cast<const char*>(image);
    while (left > 0) {
        ssize_t written = write(file, from, left);
        if (written <= 0) break;
        from += written;
        left -= written;
    }
    close(file);
    void* library = left == 0 ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) fprintf(stderr, "emulated CUDA: a module does not load: %s\n", dlerror());
    unlink(path.c_str());
    return library;
}

// A cubin runs on devices of its own major version, from its own minor version up; PTX also runs on later major
// versions.
bool runs_here(void* library) {
    const int* architecture = static_cast<const int*>(dlsym(library, "emulated_architecture"));
    const int* is_virtual = static_cast<const int*>(dlsym(library, "emulated_is_virtual"));
    int here = compute_capability();
    if (!architecture || !is_virtual || *architecture > here) return false;
    return *is_virtual || *architecture / 10 == here / 10;
}

bool is_valid(const EmulatedShape& shape, const Function& function) {
    const unsigned* grid = shape.grid;
    const unsigned* block = shape.block;
    for (int i = 0; i < 3; i++)
        if (grid[i] == 0 || block[i] == 0) return false;
    if (grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) return false;
    if (block[0] > 1024 || block[1] > 1024 || block[2] > 64) return false;
    if (block[0] * block[1] * block[2] > unsigned(function.max_threads)) return false;
    return shape.shared_bytes <= size_t(function.max_dynamic_shared);
}

}  // namespace

extern "C" {

CUresult cuModuleLoadData(Module** module, const void* image) {
    if (emulated_cuda_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    void* library = open_image(image);
    if (!library) return CUDA_ERROR_INVALID_IMAGE;
    if (!runs_here(library)) {
        dlclose(library);
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    *module = new Module{library, {}, {}};
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}

CUresult cuModuleUnload(Module* module) {
    std::lock_guard<std::recursive_mutex> guard(launches);
    for (void* global : module->globals) remove_global(global);
    dlclose(module->library);
    return delete module, CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(Function** function, Module* module, const char* name) {
    std::lock_guard<std::recursive_mutex> guard(launches);
    void* launch = dlsym(module->library, (std::string("emulated_launch_") + name).c_str());
    void* threads = dlsym(module->library, (std::string("emulated_threads_") + name).c_str());
    if (!launch || !threads) return CUDA_ERROR_NOT_FOUND;
    Function found = {reinterpret_cast<decltype(Function::launch)>(launch), name, *static_cast<int*>(threads),
                      default_shared};
    *function = &module->functions.emplace(name, found).first->second;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetGlobal_v2(void** device, size_t* bytes, Module* module, const char* name) {
    auto* global = static_cast<void**>(dlsym(module->library, (std::string("emulated_global_") + name).c_str()));
    if (!global) return CUDA_ERROR_NOT_FOUND;
    size_t size = reinterpret_cast<size_t>(global[1]);
    add_global(global[0], size);
    module->globals.push_back(global[0]);
    if (device) *device = global[0];
    if (bytes) *bytes = size;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, int attribute, Function* function) {
    switch (attribute) {
        case 0: return *value = function->max_threads, CUDA_SUCCESS;         // MAX_THREADS_PER_BLOCK
        case 4: return *value = 32, CUDA_SUCCESS;                            // NUM_REGS
        case 5: case 6: return *value = compute_capability(), CUDA_SUCCESS;  // PTX_VERSION, BINARY_VERSION
        case 8: return *value = function->max_dynamic_shared, CUDA_SUCCESS;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
        default: return *value = 0, CUDA_SUCCESS;
    }
}

CUresult cuFuncSetAttribute(Function* function, int attribute, int value) {
    if (attribute != 8) return CUDA_SUCCESS;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (value < 0 || value > max_optin_shared()) return CUDA_ERROR_INVALID_VALUE;
    return function->max_dynamic_shared = value, CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(Function*, int) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int threads,
                                                              size_t shared, unsigned) {
    if (threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    int by_threads = threads > function->max_threads ? 0 : 2048 / threads;
    int by_shared = (max_optin_shared() + 1024) / int(shared + 1024);
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function*, int blocks, int) {
    *bytes = (max_optin_shared() + 1024) / blocks - 1024;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, Function* function, size_t (*)(int),
                                                   size_t, int limit, unsigned) {
    *block = limit > 0 && limit < function->max_threads ? limit : function->max_threads;
    return *grid = 8, CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* function, size_t (*shared)(int),
                                          size_t bytes, int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, function, shared, bytes, limit, 0);
}

CUresult cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments,
                        void** extra) {
    if (CUresult error = check_stream(stream)) return error;
    EmulatedShape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, describe_address,
                           stream, emulated_cuda_use};
    if (extra || !is_valid(shape, *function)) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard<std::recursive_mutex> guard(launches);
    emulated_cuda_log("launch %s grid %u %u %u block %u %u %u shared %u", function->name.c_str(), grid_x, grid_y,
                      grid_z, block_x, block_y, block_z, shared);
    function->launch(shape, arguments);
    emulated_cuda_verify(("kernel " + function->name).c_str());
    return CUDA_SUCCESS;
}

}  // extern "C"
