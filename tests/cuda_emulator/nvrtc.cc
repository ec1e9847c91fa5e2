// NVRTC on top of g++: compiles CUDA C++ against device.h to a shared object, which stands in for the cubin.
//
// Results are kept in the folder EMULATED_CUDA_CACHE, by default `compiled` beside this library, unless
// EMULATED_CUDA_REPLACE damages the source.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "translate.h"

extern char** environ;

namespace fs = std::filesystem;

namespace {

enum nvrtcResult {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
    NVRTC_ERROR_INTERNAL_ERROR = 11,
};

struct Program {
    std::string source, name;
    std::vector<std::pair<std::string, std::string>> headers;  // name, text
    std::string log, image;
    bool is_virtual = true;  // compiled for compute_XX, which gives no cubin
};

struct Options {
    int architecture = 75;
    bool is_virtual = true;
    std::vector<std::string> preprocessor;
};

fs::path library_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&library_folder), &info);
    return fs::absolute(info.dli_fname).parent_path();
}

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void write_file(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

std::string replaced(std::string text, const std::string& old, const std::string& with) {
    for (size_t at = text.find(old); at != std::string::npos; at = text.find(old, at + with.size()))
        text.replace(at, old.size(), with);
    return text;
}

// Runs g++ with its messages in a file; returns its exit status.
int run_compiler(const std::vector<std::string>& arguments, const fs::path& messages) {
    const char* compiler = getenv("CXX");
    std::vector<char*> argv = {const_cast<char*>(compiler ? compiler : "g++")};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, messages.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int error = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error) return write_file(messages, std::string(argv[0]) + ": " + strerror(error)), error;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    return status;
}

bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// The value of `--name=value` or `--name value` (which advances i), or nothing.
bool take(const std::vector<std::string>& options, size_t& i, const char* name, std::string& value) {
    if (begins(options[i], (std::string(name) + "=").c_str())) return value = options[i].substr(strlen(name) + 1), true;
    if (options[i] == name && i + 1 < options.size()) return value = options[++i], true;
    return false;
}

bool parse_architecture(const std::string& text, Options& parsed) {
    char suffix[8] = "";
    parsed.is_virtual = begins(text, "compute_");
    const char* format = parsed.is_virtual ? "compute_%d%7s" : "sm_%d%7s";
    int found = sscanf(text.c_str(), format, &parsed.architecture, suffix);
    return found >= 1 && parsed.architecture >= 75;
}

// Options that have no effect here; anything may follow these prefixes.
const char* const ignored[] = {"--std=", "-std=", "--fmad", "-fmad", "--ftz", "-ftz", "--prec-", "-prec-",
                               "--use_fast_math", "-use_fast_math", "--restrict", "-restrict", "-lineinfo",
                               "--generate-line-info", "--device-debug", "-G", "--maxrregcount", "-maxrregcount",
                               "-default-device", "--device-as-default-execution-space", "--extra-device-vectorization",
                               "--disable-warnings", "-w", "--dopt", "--ptxas-options", "--split-compile", "--minimal",
                               "--relocatable-device-code=false", "--diag-", "-diag-"};

bool parse_options(const std::vector<std::string>& options, Options& parsed, std::string& wrong) {
    for (size_t i = 0; i < options.size(); i++) {
        std::string value;
        wrong = options[i];
        if (take(options, i, "--gpu-architecture", value) || take(options, i, "-arch", value)) {
            if (!parse_architecture(value, parsed)) return false;
        } else if (take(options, i, "--define-macro", value)) parsed.preprocessor.push_back("-D" + value);
        else if (take(options, i, "--undefine-macro", value)) parsed.preprocessor.push_back("-U" + value);
        else if (take(options, i, "--include-path", value)) parsed.preprocessor.push_back("-I" + value);
        else if (begins(options[i], "-D") || begins(options[i], "-U") || begins(options[i], "-I"))
            parsed.preprocessor.push_back(options[i]);
        else {
            bool is_known = false;
            for (const char* known : ignored) is_known |= begins(options[i], known);
            if (!is_known) return false;
        }
    }
    return true;
}

// Compile as nvcc does: type punning is allowed and integers wrap. A misaligned access traps, as on a GPU.
const std::vector<std::string> compile_flags = {
    "-O2", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-gnu-unique", "-fno-strict-aliasing", "-fwrapv",
    "-ffp-contract=off", "-fno-math-errno", "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"};

std::string fnv(const std::string& text) {
    uint64_t hash = 14695981039346656037u;
    for (unsigned char byte : text) hash = (hash ^ byte) * 1099511628211u;
    char digits[20];
    snprintf(digits, sizeof digits, "%016lx", (unsigned long)hash);
    return digits;
}

// Replaces the one occurrence of OLD in the source as EMULATED_CUDA_REPLACE=OLD=>NEW says, to test the tests.
std::string with_replacement(const std::string& source, const char* wish) {
    const std::string text = wish;
    size_t arrow = text.find("=>");
    const std::string old = text.substr(0, arrow);
    size_t at = arrow == std::string::npos || old.empty() ? arrow : source.find(old);
    const char* wrong = arrow == std::string::npos || old.empty()     ? "is not of the form OLD=>NEW"
                        : at == std::string::npos                     ? "names text that the source lacks"
                        : source.find(old, at + 1) != std::string::npos ? "names text that the source has more than once"
                                                                      : nullptr;
    if (wrong) {
        fprintf(stderr, "emulated NVRTC: EMULATED_CUDA_REPLACE %s: %s\n", wrong, wish);
        abort();
    }
    return std::string(source).replace(at, old.size(), text.substr(arrow + 2));
}

fs::path cached_path(const std::string& text) {
    std::string all = text;
    for (const std::string& flag : compile_flags) all += flag;
    for (const char* header : {"device.h", "fibers.h", "matrix.h", "crash.h", "launch.h", "driver.h"})
        all += read_file(library_folder() / header);
    const char* folder = getenv("EMULATED_CUDA_CACHE");
    return (folder ? fs::path(folder) : library_folder() / "compiled") / (fnv(all) + fnv(fnv(all) + all) + ".so");
}

// Moves a finished file into the cache in one step; a failure has no effect.
void keep(const std::string& image, const fs::path& path) {
    std::error_code ignored_error;
    fs::create_directories(path.parent_path(), ignored_error);
    fs::path own = path.string() + "." + std::to_string(getpid());
    std::ofstream(own, std::ios::binary) << image;
    if (fs::file_size(own, ignored_error) == image.size()) fs::rename(own, path, ignored_error);
    else fs::remove(own, ignored_error);
}

nvrtcResult compile(Program& program, const Options& options, const fs::path& folder) {
    const char* replacement = getenv("EMULATED_CUDA_REPLACE");
    write_file(folder / "source.cc",
               replacement ? with_replacement(program.source, replacement) : program.source);
    for (const auto& [name, text] : program.headers) write_file(folder / "include" / name, text);
    std::vector<std::string> preprocess = {"-E", "-std=c++17", "-nostdinc", "-nostdinc++", "-D__CUDACC__",
                                           "-D__CUDACC_RTC__", "-D__NVCC__", "-I" + (folder / "include").string()};
    preprocess.insert(preprocess.end(), options.preprocessor.begin(), options.preprocessor.end());
    std::string output = (folder / "source.ii").string(), image = (folder / "image.so").string();
    preprocess.insert(preprocess.end(), {(folder / "source.cc").string(), "-o", output});
    if (run_compiler(preprocess, folder / "messages")) return NVRTC_ERROR_COMPILATION;
    std::string text = replaced(read_file(output), folder / "source.cc", program.name);
    text = translate(text, options.architecture, options.is_virtual);

    fs::path cached = cached_path(text);
    if (!replacement) program.image = read_file(cached);
    if (!program.image.empty()) return NVRTC_SUCCESS;
    write_file(folder / "module.cc", text);
    std::vector<std::string> arguments = compile_flags;
    arguments.insert(arguments.end(), {"-I" + library_folder().string(), (folder / "module.cc").string(), "-o", image});
    if (run_compiler(arguments, folder / "messages")) return NVRTC_ERROR_COMPILATION;
    program.image = read_file(image);
    if (!replacement) keep(program.image, cached);
    return NVRTC_SUCCESS;
}

size_t image_bytes(const Program* program, bool wants_virtual) {
    return program->is_virtual && !wants_virtual ? 0 : program->image.size();
}

}  // namespace

extern "C" {

nvrtcResult nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, NVRTC_SUCCESS; }

const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
        case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
        case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
        case NVRTC_ERROR_INTERNAL_ERROR: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
    return "NVRTC_ERROR unknown";
}

nvrtcResult nvrtcGetNumSupportedArchs(int* count) { return *count = 6, NVRTC_SUCCESS; }
nvrtcResult nvrtcGetSupportedArchs(int* architectures) {
    const int all[] = {75, 80, 86, 89, 90, 100};
    return memcpy(architectures, all, sizeof all), NVRTC_SUCCESS;
}

nvrtcResult nvrtcCreateProgram(Program** program, const char* source, const char* name, int num_headers,
                               const char* const* headers, const char* const* include_names) {
    if (!program || !source) return NVRTC_ERROR_INVALID_INPUT;
    *program = new Program{source, name ? name : "default_program", {}, "", "", true};
    for (int i = 0; i < num_headers; i++) (*program)->headers.emplace_back(include_names[i], headers[i]);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return NVRTC_ERROR_INVALID_PROGRAM;
    delete *program;
    return *program = nullptr, NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(Program* program, int num_options, const char* const* options) {
    Options parsed;
    std::string wrong;
    if (!parse_options({options, options + num_options}, parsed, wrong)) {
        program->log = "nvrtc: error: unrecognized option " + wrong + " found";
        return NVRTC_ERROR_INVALID_OPTION;
    }
    program->is_virtual = parsed.is_virtual;
    std::string folder = (fs::temp_directory_path() / "emulated_nvrtc_XXXXXX").string();
    if (!mkdtemp(folder.data())) return NVRTC_ERROR_INTERNAL_ERROR;
    nvrtcResult result = compile(*program, parsed, folder);
    if (result != NVRTC_SUCCESS)
        program->log = replaced(read_file(fs::path(folder) / "messages"), folder + "/source.cc", program->name);
    fs::remove_all(folder);
    return result;
}

nvrtcResult nvrtcGetPTXSize(Program* program, size_t* bytes) {
    return *bytes = image_bytes(program, true), NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetPTX(Program* program, char* ptx) {
    return memcpy(ptx, program->image.data(), image_bytes(program, true)), NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    return *bytes = image_bytes(program, false), NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBIN(Program* program, char* cubin) {
    return memcpy(cubin, program->image.data(), image_bytes(program, false)), NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    return *bytes = program->log.size() + 1, NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(Program* program, char* log) {
    return memcpy(log, program->log.c_str(), program->log.size() + 1), NVRTC_SUCCESS;
}

}  // extern "C"
