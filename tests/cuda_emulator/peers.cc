#include "peers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <deque>

namespace {

constexpr int connect_seconds = 120;

struct Header {
    uint64_t bytes;
    char operation[24];
};

// The state of one direction of the exchange with one peer.
struct Lane {
    std::deque<Message> messages;
    Header header;
    size_t done = 0;  // bytes of the header and the first message
};

// An address in the abstract namespace, which disappears with its process.
socklen_t address_of(const std::string& name, int rank, sockaddr_un& address) {
    std::string path = "emulated-nccl-" + name + "-" + std::to_string(rank);
    address = {};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path + 1, sizeof address.sun_path - 1);
    return offsetof(sockaddr_un, sun_path) + 1 + std::min(path.size(), sizeof address.sun_path - 1);
}

void read_all(int socket, void* data, size_t bytes) {
    if (recv(socket, data, bytes, MSG_WAITALL) != ssize_t(bytes))
        throw PeerError{nccl_remote_error, "a rank went away while the ranks met"};
}

void write_all(int socket, const void* data, size_t bytes) {
    if (send(socket, data, bytes, MSG_NOSIGNAL) != ssize_t(bytes))
        throw PeerError{nccl_remote_error, "a rank went away while the ranks met"};
}

[[noreturn]] void fail(const std::string& text) {
    fprintf(stderr, "emulated NCCL: %s\n", text.c_str());
    abort();
}

Header header_of(const Message& message, const char* operation) {
    Header header = {message.bytes, {}};
    strncpy(header.operation, operation, sizeof header.operation - 1);
    return header;
}

// Transfers what the socket accepts or has now; returns true when a message is complete.
bool step(int socket, Lane& lane, bool is_send, int peer) {
    Message& message = lane.messages.front();
    bool in_header = lane.done < sizeof(Header);
    size_t start = in_header ? 0 : sizeof(Header), end = in_header ? sizeof(Header) : message.bytes + sizeof(Header);
    char* at = (in_header ? reinterpret_cast<char*>(&lane.header) : message.data) + lane.done - start;
    size_t left = end - lane.done;
    if (left > 0) {
        ssize_t moved = is_send ? send(socket, at, left, MSG_NOSIGNAL | MSG_DONTWAIT)
                                : recv(socket, at, left, MSG_DONTWAIT);
        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        if (moved <= 0) throw PeerError{nccl_remote_error, "rank " + std::to_string(peer) + " went away"};
        lane.done += moved;
    }
    return lane.done == sizeof(Header) + message.bytes;
}

void check_header(const Header& got, const Header& wanted, int peer, int rank) {
    if (!memcmp(&got, &wanted, sizeof got)) return;
    fail("rank " + std::to_string(peer) + " sends " + std::to_string(got.bytes) + " bytes by " + got.operation +
         " where rank " + std::to_string(rank) + " awaits " + std::to_string(wanted.bytes) + " by " + wanted.operation);
}

}  // namespace

int Peers::accept_peer(int listener) {
    for (int waited = 0; waited < connect_seconds * 10; waited++) {
        pollfd ready = {listener, POLLIN, 0};
        if (is_aborted) break;
        if (poll(&ready, 1, 100) > 0) return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    }
    throw PeerError{nccl_system_error, "a rank did not come"};
}

// Exchanges the devices' names; no two ranks may have the same device.
void Peers::greet(int peer, int socket, const std::string& device) {
    char own[256] = {}, others[256] = {};
    device.copy(own, sizeof own - 1);
    write_all(socket, own, sizeof own);
    read_all(socket, others, sizeof others);
    if (!memcmp(own, others, sizeof own))
        throw PeerError{nccl_invalid_usage, "duplicate GPU: ranks " + std::to_string(rank) + " and " +
                                                std::to_string(peer) + " both use device " + device};
}

void Peers::connect(const std::string& name, const std::string& device) {
    sockaddr_un address;
    socklen_t bytes = address_of(name, rank, address);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), bytes) || listen(listener, 64))
        throw PeerError{nccl_invalid_usage, "rank " + std::to_string(rank) + " is there twice"};
    for (int peer = 0; peer < rank; peer++) {
        bytes = address_of(name, peer, address);
        int own = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        for (int waited = 0; ::connect(own, reinterpret_cast<sockaddr*>(&address), bytes); waited++) {
            if (waited == connect_seconds * 100 || is_aborted)
                throw PeerError{nccl_system_error, "rank " + std::to_string(peer) + " did not come"};
            usleep(10000);
        }
        write_all(own, &rank, sizeof rank);
        sockets[peer] = own;
    }
    for (int left = count() - 1 - rank; left > 0; left--) {
        int own = accept_peer(listener), peer;
        read_all(own, &peer, sizeof peer);
        sockets[peer] = own;
    }
    // Close before any rank continues, so that the next communicator of this name meets none of these sockets.
    ::close(listener);
    for (int peer = 0; peer < count(); peer++)
        if (peer != rank) greet(peer, sockets[peer], device);
}

void Peers::exchange(std::vector<Message> sends, std::vector<Message> receives, const char* operation) {
    std::vector<Lane> lanes(2 * count());  // the sends to each rank, then the receives
    size_t left = sends.size() + receives.size();
    for (Message& message : sends) lanes[message.peer].messages.push_back(message);
    for (Message& message : receives) lanes[count() + message.peer].messages.push_back(message);
    Lane &to_self = lanes[rank], &from_self = lanes[count() + rank];
    while (!to_self.messages.empty() && !from_self.messages.empty()) {
        const Message &from = to_self.messages.front(), &to = from_self.messages.front();
        check_header(header_of(from, operation), header_of(to, operation), rank, rank);
        memmove(to.data, from.data, from.bytes);
        to_self.messages.pop_front();
        from_self.messages.pop_front();
        left -= 2;
    }
    if (!to_self.messages.empty() || !from_self.messages.empty()) fail("a message to the own rank has no other side");
    for (int i = 0; i < count(); i++)
        if (!lanes[i].messages.empty()) lanes[i].header = header_of(lanes[i].messages.front(), operation);
    while (left > 0) {
        if (is_aborted) throw PeerError{nccl_remote_error, "the communicator was aborted"};
        std::vector<pollfd> wanted;
        std::vector<int> of;
        for (int i = 0; i < 2 * count(); i++)
            if (!lanes[i].messages.empty()) {
                wanted.push_back({sockets[i % count()], short(i < count() ? POLLOUT : POLLIN), 0});
                of.push_back(i);
            }
        poll(wanted.data(), wanted.size(), 100);
        for (size_t w = 0; w < wanted.size(); w++) {
            if (!wanted[w].revents) continue;
            Lane& lane = lanes[of[w]];
            bool is_send = of[w] < count();
            int peer = of[w] % count();
            bool had_header = lane.done >= sizeof(Header);
            bool is_done = step(wanted[w].fd, lane, is_send, peer);
            if (!is_send && !had_header && lane.done >= sizeof(Header))
                check_header(lane.header, header_of(lane.messages.front(), operation), peer, rank);
            if (!is_done) continue;
            lane.messages.pop_front();
            lane.done = 0;
            left--;
            if (is_send && !lane.messages.empty()) lane.header = header_of(lane.messages.front(), operation);
        }
    }
}

void Peers::abort() {
    is_aborted = true;
    for (int socket : sockets)
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
}

void Peers::close() {
    for (int& socket : sockets) {
        if (socket >= 0) ::close(socket);
        socket = -1;
    }
}
