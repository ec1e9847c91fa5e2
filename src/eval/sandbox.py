# Runs one program of an answer with its tests, for src/eval/sandbox.rs, which has put this process into namespaces of its
# own where the kernel allows it. Everything below happens before a line of the program runs.
import ctypes
import json
import os
import resource
import struct
import sys


def is_real_root():
    try:
        with open("/proc/self/uid_map") as ids:
            return os.geteuid() == 0 and ids.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return os.geteuid() == 0


def become_nobody():
    """Root ignores limits on processes; nobody doesn't. The interpreter must lie where everyone can read it."""
    nobody = 65534
    for path in (os.path.realpath(sys.executable), os.path.realpath(os.__file__), sys.prefix, os.path.dirname(os.getcwd())):
        while True:
            if not os.stat(path).st_mode & (0o004 if os.path.isfile(path) else 0o001):
                return
            if path == os.path.dirname(path):
                break
            path = os.path.dirname(path)
    os.chown(os.getcwd(), nobody, nobody)
    os.setgroups([])
    os.setgid(nobody)
    os.setuid(nobody)


def is_bounded():
    """Whether the limit on processes holds for this user."""
    limit(resource.RLIMIT_NPROC, 1)
    try:
        child = os.fork()
    except OSError:
        return True
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return False


def landlock(folder):
    """Writing is allowed in the folder alone; TCP and signals to other processes not at all, where the kernel knows how."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict, write = 444, 445, 446, 0x1FF2
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return 0
    write |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    attributes = struct.pack("QQQ", write, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = libc.syscall(create, attributes, size, 0)
    for path, allowed in ((folder, write), (os.devnull, write & (1 << 1 | 1 << 14))):
        opened = os.open(path, os.O_PATH)
        if rules < 0 or libc.syscall(add, rules, 1, struct.pack("=Qi", allowed, opened), 0):
            return 0
        os.close(opened)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(restrict, rules, 0):
        return 0
    os.close(rules)
    return version


def limit(name, value):
    hard = resource.getrlimit(name)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))


def run(solution, tests):
    names = {"__name__": "answer"}
    try:
        exec(compile(solution, "answer.py", "exec"), names)
        exec(compile(tests, "tests.py", "exec"), names)
    except SystemExit:
        return "the program ended before its tests had passed"
    except BaseException as error:
        return (type(error).__name__ + ": " + str(error)).rstrip(": ")[:200]
    return "passed"


def main():
    # What the report is made with stays in this frame: no name of a module leads a program to it.
    job = json.loads(sys.stdin.buffer.read())
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)

    def answer(outcome, **more):
        line = json.dumps({"token": job["token"], "outcome": outcome, **more}) + "\n"
        os.write(report, line.encode())
        os._exit(0)

    if is_real_root():
        try:
            become_nobody()
        except OSError:
            pass
    try:
        locked = landlock(os.getcwd())
    except (OSError, AttributeError):
        locked = 0
    # The limit on memory comes last, because the loader of shared objects needs some.
    for name, value in (("CORE", 0), ("NOFILE", 64), ("CPU", job["seconds"] + 1), ("FSIZE", job["file_bytes"])):
        limit(getattr(resource, "RLIMIT_" + name), value)
    if hasattr(resource, "RLIMIT_NPROC"):
        limit(resource.RLIMIT_NPROC, job["processes"])
    try:
        limit(resource.RLIMIT_AS, job["memory_bytes"])
        roomy = False
    except (OSError, ValueError):
        roomy = True
    if job["solution"] is None:
        answer("ready", bounded=is_bounded(), landlock=locked, unlimited_memory=roomy)
    answer(run(job["solution"], job["tests"]))


main()
