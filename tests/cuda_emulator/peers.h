// Messages between the ranks of a communicator, over Unix sockets of one machine.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <string>
#include <vector>

// One direction of an exchange with a peer. Both sides must agree on the size.
struct Message {
    int peer;
    char* data;
    size_t bytes;
};

class Peers {
   public:
    Peers(int rank, int count) : rank(rank), sockets(count, -1) {}

    // Connects to the other ranks of the same name; throws PeerError.
    void connect(const std::string& name, const std::string& device);
    void use(int peer, int socket) { sockets[peer] = socket; }
    // Sends and receives all messages at once; messages with one peer keep their order.
    void exchange(std::vector<Message> sends, std::vector<Message> receives, const char* operation);
    // Makes an exchange in progress fail; any thread may call it.
    void abort();
    void close();

    const int rank;
    int count() const { return int(sockets.size()); }

   private:
    int accept_peer(int listener);
    void greet(int peer, int socket, const std::string& device);

    std::vector<int> sockets;
    std::atomic<bool> is_aborted{false};
};

struct PeerError {
    int code;  // an ncclResult_t
    std::string text;
};

constexpr int nccl_system_error = 2, nccl_invalid_usage = 5, nccl_remote_error = 6;
