// NCCL between processes or threads of one machine. Collectives reduce in the order of ranks, so that all ranks get the
// same result; a bf16 sum is rounded after each addition.
//
// As with the real library, all ranks get one id from NCCL_COMM_ID, and two ranks of one host (or one NCCL_HOSTID) on
// the same device are refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <random>
#include <thread>

#include "driver.h"
#include "peers.h"
#include "reduce.h"

namespace {

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};

struct ncclUniqueId {
    char name[128];
};

struct Comm {
    Comm(int rank, int count, int device) : peers(rank, count), device(device) {}

    Peers peers;
    int device;
    std::atomic<ncclResult_t> async_error{ncclSuccess};
    std::vector<Message> sends, receives;        // in the open group
    std::vector<std::function<void()>> pending;  // the group's other work, in order
};

thread_local std::string last_error;
thread_local int group_depth = 0;
thread_local std::vector<Comm*> group;  // the communicators with work in the open group

ncclResult_t fail(ncclResult_t code, const std::string& text) {
    last_error = text;
    fprintf(stderr, "emulated NCCL: %s\n", text.c_str());
    return code;
}

// Runs a group: its collectives, and after them all of its sends and receives at once.
void run(Comm* comm) {
    try {
        for (auto& work : comm->pending) work();
        if (!comm->sends.empty() || !comm->receives.empty())
            comm->peers.exchange(comm->sends, comm->receives, "send and recv");
    } catch (const PeerError& error) {
        comm->async_error = fail(ncclResult_t(error.code), error.text);
    }
    comm->pending.clear();
    comm->sends.clear();
    comm->receives.clear();
}

ncclResult_t run_group() {
    std::vector<std::thread> threads;
    for (size_t i = 1; i < group.size(); i++) threads.emplace_back(run, group[i]);
    if (!group.empty()) run(group[0]);
    for (std::thread& thread : threads) thread.join();
    ncclResult_t result = ncclSuccess;
    for (Comm* comm : group)
        if (comm->async_error) result = comm->async_error;
    group.clear();
    emulated_cuda_verify("an NCCL operation");
    return result;
}

ncclResult_t add_to_group(Comm* comm) {
    bool is_there = false;
    for (Comm* other : group) is_there |= other == comm;
    if (!is_there) group.push_back(comm);
    return group_depth > 0 ? ncclSuccess : run_group();
}

// Identifies host and device; no two ranks of a communicator may have the same.
std::string device_name() {
    char host[128] = "";
    gethostname(host, sizeof host - 1);
    const char* id = getenv("NCCL_HOSTID");
    return std::string(id ? id : host) + " " + std::to_string(emulated_cuda_physical_device());
}

ncclResult_t check_call(const Comm* comm, int type, void* stream) {
    if (!comm || element_bytes(type) == 0) return fail(ncclInvalidArgument, "no communicator, or an unknown type");
    if (comm->async_error) return fail(ncclInvalidUsage, "the communicator has failed before");
    return check_stream(stream) ? fail(ncclUnhandledCudaError, "an invalid stream or context") : ncclSuccess;
}

void check_buffers(const void* from, size_t from_bytes, const void* to, size_t to_bytes, const char* operation,
                   const void* stream) {
    for (const void* used : {from, to}) emulated_cuda_use(used, stream, operation);
    if (from) emulated_cuda_check(from, from_bytes, (std::string(operation) + "'s send buffer").c_str());
    if (to) emulated_cuda_check(to, to_bytes, (std::string(operation) + "'s receive buffer").c_str());
    emulated_cuda_log("nccl %s %zu", operation, from ? from_bytes : to_bytes);
}

char* bytes_of(const void* pointer) { return static_cast<char*>(const_cast<void*>(pointer)); }

struct Reduction {
    const char* name;
    const void* from;
    void* to;
    size_t count;
    int type, op;
    int root = -1;            // the only rank that receives, or -1 for all ranks
    bool is_scatter = false;  // rank r receives chunk r of `from`
};

// Sends each receiver its part and reduces what is received in the order of ranks.
void reduce_parts(Comm* comm, const Reduction& reduction) {
    const auto& [name, from, to, count, type, op, root, is_scatter] = reduction;
    size_t bytes = count * element_bytes(type);
    int ranks = comm->peers.count();
    bool receives = root < 0 || root == comm->peers.rank;
    std::vector<Message> out, in;
    std::vector<std::vector<char>> parts(receives ? ranks : 0, std::vector<char>(bytes));
    for (int peer = 0; peer < ranks; peer++) {
        char* part = bytes_of(from) + (is_scatter ? peer * bytes : 0);
        if (root < 0 || peer == root) out.push_back({peer, part, bytes});
        if (receives) in.push_back({peer, parts[peer].data(), bytes});
    }
    comm->peers.exchange(out, in, name);
    if (!receives) return;
    for (int peer = 1; peer < ranks; peer++) reduce_into(parts[0].data(), parts[peer].data(), count, type, op);
    if (op == op_avg) divide(parts[0].data(), count, type, ranks);
    memcpy(to, parts[0].data(), bytes);
}

ncclResult_t reduce(const Reduction& reduction, Comm* comm, void* stream) {
    if (ncclResult_t error = check_call(comm, reduction.type, stream)) return error;
    if (reduction.op < 0 || reduction.op > op_avg || reduction.root >= comm->peers.count())
        return fail(ncclInvalidArgument, "an unknown reduction or root");
    size_t bytes = reduction.count * element_bytes(reduction.type);
    bool receives = reduction.root < 0 || reduction.root == comm->peers.rank;
    check_buffers(reduction.from, reduction.is_scatter ? bytes * comm->peers.count() : bytes,
                  receives ? reduction.to : nullptr, bytes, reduction.name, stream);
    comm->pending.push_back([=] { reduce_parts(comm, reduction); });
    return add_to_group(comm);
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) { return *version = 23003, ncclSuccess; }

const char* ncclGetErrorString(ncclResult_t result) {
    const char* texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                           "invalid argument", "invalid usage", "remote process exited or there was a network error",
                           "NCCL operation in progress"};
    return result >= 0 && result <= ncclInProgress ? texts[result] : "unknown result code";
}
const char* ncclGetLastError(Comm*) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    memset(id, 0, sizeof *id);
    const char* address = getenv("NCCL_COMM_ID");
    std::random_device random;
    if (address) snprintf(id->name, sizeof id->name, "%s", address);
    else snprintf(id->name, sizeof id->name, "%x%x%x-%d", random(), random(), random(), getpid());
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(Comm** comm, int count, ncclUniqueId id, int rank) {
    if (emulated_cuda_device() < 0) return fail(ncclUnhandledCudaError, "no current context");
    if (count < 1 || rank < 0 || rank >= count) return fail(ncclInvalidArgument, "a rank outside its communicator");
    Comm* created = *comm = new Comm(rank, count, emulated_cuda_device());
    std::string name(id.name, strnlen(id.name, sizeof id.name)), device = device_name();
    emulated_cuda_log("nccl init %d of %d", rank, count);
    created->pending.push_back([=] { created->peers.connect(name, device); });
    return add_to_group(created);
}
ncclResult_t ncclCommInitRankConfig(Comm** comm, int count, ncclUniqueId id, int rank, void*) {
    return ncclCommInitRank(comm, count, id, rank);
}

ncclResult_t ncclCommInitAll(Comm** comms, int count, const int* devices) {
    for (int i = 0; i < count; i++) comms[i] = new Comm(i, count, devices ? devices[i] : i);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++) {
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return fail(ncclSystemError, "no socket");
            comms[i]->peers.use(j, pair[0]);
            comms[j]->peers.use(i, pair[1]);
        }
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(Comm*) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(Comm* comm) {
    comm->peers.close();
    return delete comm, ncclSuccess;
}
// The communicator's memory is not freed, because another thread may be using it.
ncclResult_t ncclCommAbort(Comm* comm) { return comm->peers.abort(), ncclSuccess; }
ncclResult_t ncclCommCount(const Comm* comm, int* count) { return *count = comm->peers.count(), ncclSuccess; }
ncclResult_t ncclCommCuDevice(const Comm* comm, int* device) { return *device = comm->device, ncclSuccess; }
ncclResult_t ncclCommUserRank(const Comm* comm, int* rank) { return *rank = comm->peers.rank, ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(Comm* comm, ncclResult_t* error) { return *error = comm->async_error, ncclSuccess; }

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Comm* comm, void* stream) {
    return reduce({"all_reduce", from, to, count, type, op}, comm, stream);
}
ncclResult_t ncclReduce(const void* from, void* to, size_t count, int type, int op, int root, Comm* comm,
                        void* stream) {
    if (root < 0) return fail(ncclInvalidArgument, "a negative root");
    return reduce({"reduce", from, to, count, type, op, root}, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, Comm* comm, void* stream) {
    return reduce({"reduce_scatter", from, to, count, type, op, -1, true}, comm, stream);
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    if (ncclResult_t error = check_call(comm, type, stream)) return error;
    size_t bytes = count * element_bytes(type);
    check_buffers(from, bytes, to, bytes * comm->peers.count(), "all_gather", stream);
    comm->pending.push_back([=] {
        std::vector<Message> out, in;
        for (int peer = 0; peer < comm->peers.count(); peer++) {
            out.push_back({peer, bytes_of(from), bytes});
            in.push_back({peer, bytes_of(to) + peer * bytes, bytes});
        }
        comm->peers.exchange(out, in, "all_gather");
    });
    return add_to_group(comm);
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Comm* comm, void* stream) {
    if (ncclResult_t error = check_call(comm, type, stream)) return error;
    if (root < 0 || root >= comm->peers.count()) return fail(ncclInvalidArgument, "an unknown root");
    size_t bytes = count * element_bytes(type);
    bool is_root = comm->peers.rank == root;
    check_buffers(is_root ? from : nullptr, bytes, to, bytes, "broadcast", stream);
    comm->pending.push_back([=] {
        std::vector<Message> out;
        for (int peer = 0; is_root && peer < comm->peers.count(); peer++) out.push_back({peer, bytes_of(from), bytes});
        comm->peers.exchange(out, {{root, bytes_of(to), bytes}}, "broadcast");
    });
    return add_to_group(comm);
}
ncclResult_t ncclBcast(void* buffer, size_t count, int type, int root, Comm* comm, void* stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

ncclResult_t ncclSend(const void* from, size_t count, int type, int peer, Comm* comm, void* stream) {
    if (ncclResult_t error = check_call(comm, type, stream)) return error;
    if (peer < 0 || peer >= comm->peers.count()) return fail(ncclInvalidArgument, "an unknown peer");
    size_t bytes = count * element_bytes(type);
    check_buffers(from, bytes, nullptr, 0, "send", stream);
    comm->sends.push_back({peer, bytes_of(from), bytes});
    return add_to_group(comm);
}
ncclResult_t ncclRecv(void* to, size_t count, int type, int peer, Comm* comm, void* stream) {
    if (ncclResult_t error = check_call(comm, type, stream)) return error;
    if (peer < 0 || peer >= comm->peers.count()) return fail(ncclInvalidArgument, "an unknown peer");
    size_t bytes = count * element_bytes(type);
    check_buffers(nullptr, 0, to, bytes, "recv", stream);
    comm->receives.push_back({peer, bytes_of(to), bytes});
    return add_to_group(comm);
}

ncclResult_t ncclGroupStart() { return group_depth++, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
    if (group_depth == 0) return fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    return --group_depth > 0 ? ncclSuccess : run_group();
}

}  // extern "C"
