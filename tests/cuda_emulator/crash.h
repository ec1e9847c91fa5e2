// Names the kernel when a launch crashes: by touching a fence next to an allocation, by a misaligned access, ...
#pragma once

#include <signal.h>

#include "fibers.h"

namespace emulated {

// Names the kernel in the message of a crash.
static void on_crash(int, siginfo_t* info, void*) {
    if (info->si_signo == SIGILL) fail("a misaligned access, or an index outside its array");
    char text[200] = "";
    if (now.describe) now.describe(info->si_addr, text, sizeof text);
    fail("an illegal access to address %p, %s", info->si_addr, text);
}

class CrashHandler {
    struct sigaction segv, bus, ill;
    stack_t stack;

   public:
    CrashHandler() {
        static char memory[64 * 1024];
        stack_t own = {memory, 0, sizeof memory};
        sigaltstack(&own, &stack);
        struct sigaction action = {};
        action.sa_sigaction = on_crash;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &segv);
        sigaction(SIGBUS, &action, &bus);
        sigaction(SIGILL, &action, &ill);
    }
    ~CrashHandler() {
        sigaction(SIGSEGV, &segv, nullptr);
        sigaction(SIGBUS, &bus, nullptr);
        sigaction(SIGILL, &ill, nullptr);
        sigaltstack(&stack, nullptr);
    }
};

}  // namespace emulated
