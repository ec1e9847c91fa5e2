"""Loads a `weft serve` on this machine with many clients for some minutes and compares every answer with that of
`weft generate`: none may be lost or mixed up, and the server's memory has to stay flat. Needs Linux; no packages.

    python scripts/load_test.py WEFT [--clients 64] [--minutes 10] [--restarts 0] [--adapter DIR]...

Each client asks one question after the other over connections of its own, in turn whole and streamed, by the base and the
adapters. Some leave before their answer; what they ask isn't compared. With --restarts the server is killed that often
and started again, and clients try again. At the end the server gets SIGTERM while all clients wait: it has to answer what
it was asked before, and to end with status 0. Prints one line every two minutes and a summary; ends with status 1 if an
answer was wrong or lost, or if the memory grew by more than a tenth after the first fifth of the time.
"""

import argparse
import http.client
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import threading
import time

QUESTIONS = [f"What is {a} + {b}?" for a in range(8) for b in range(2)]
SETTINGS = [("--gen-length", "16"), ("--gen-length", "24", "--temperature", "0.8", "--seed", "3")]
# A request that was sent this many seconds before SIGTERM has been accepted.
SETTLED = 0.5
FIELDS = [{"max_tokens": 16}, {"max_tokens": 24, "temperature": 0.8, "seed": 3}]


def expected_answers(weft, models):
    """The answer of `weft generate` to each question, by model and settings."""
    answers = {}
    for name, adapter in models.items():
        for which, settings in enumerate(SETTINGS):
            for question in QUESTIONS:
                options = ["--adapter", adapter] if adapter else []
                done = subprocess.run([weft, "generate", "--model", "tiny-base", *options, *settings, "--prompt", question],
                                      capture_output=True, text=True, stdin=subprocess.DEVNULL)
                if done.returncode:
                    sys.exit(done.stderr)
                answers[name, which, question] = done.stdout.removesuffix("\n")
    return answers


class Server:
    def __init__(self, weft, models, port):
        adapters = [f"--adapter={name}={path}" for name, path in models.items() if path]
        self.command = [weft, "serve", "--model", "tiny-base", "--port", str(port), "--quiet", *adapters]
        self.port = port
        self.stopped = float("inf")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def stop(self):
        self.stopped = time.monotonic()
        self.process.terminate()

    def memory_kb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.answered = self.left = self.busy = self.again = self.late = 0
        self.wrong, self.lost, self.seconds = [], [], []


def ask(port, body):
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status != 200:
        return response.status, text
    if not body["stream"]:
        return 200, json.loads(text)["choices"][0]["message"]["content"]
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    if data[-1] != "[DONE]":
        raise ConnectionError("a stream without its end")
    return 200, "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in data[:-1])


def leave(port, body):
    """Asks and leaves before the answer."""
    text = json.dumps(body)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as stream:
        stream.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
        time.sleep(random.random() / 4)


def client(server, answers, end, counts, seed):
    draws = random.Random(seed)
    keys = sorted(answers)
    while time.monotonic() < end:
        model, which, question = key = draws.choice(keys)
        body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": draws.random() < 0.5}
        body |= FIELDS[which]
        began = time.monotonic()
        try:
            if draws.random() < 0.05:
                leave(server.port, body)
                with counts.lock:
                    counts.left += 1
                continue
            status, text = ask(server.port, body)
        except (OSError, http.client.HTTPException, ConnectionError, ValueError) as error:
            # A server that is being restarted or has ended; otherwise an answer is lost.
            with counts.lock:
                if began > server.stopped - SETTLED:
                    counts.late += 1
                elif server.restarts and time.monotonic() < server.stopped:
                    counts.again += 1
                else:
                    counts.lost.append(repr(error))
            time.sleep(0.2)
            continue
        with counts.lock:
            if status == 429:
                counts.busy += 1
            elif status == 503 and began > server.stopped - SETTLED:
                counts.late += 1
            elif status != 200:
                counts.lost.append(f"{status}: {text}")
            elif text != answers[key]:
                counts.wrong.append((key, text))
            else:
                counts.answered += 1
                counts.seconds.append(time.monotonic() - began)
        if status == 429:
            time.sleep(1)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("weft")
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--restarts", type=int, default=0)
    arguments.add_argument("--adapter", action="append", default=[])
    given = arguments.parse_args()
    weft = str(pathlib.Path(given.weft).resolve())
    models = {"tiny-base": None} | {f"adapter-{i}": path for i, path in enumerate(given.adapter)}
    answers = expected_answers(weft, models)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server, counts = Server(weft, models, port), Counts()
    server.restarts = given.restarts
    began = time.monotonic()
    end = began + 60 * given.minutes
    threads = [threading.Thread(target=client, args=(server, answers, end, counts, i)) for i in range(given.clients)]
    for thread in threads:
        thread.start()
    memory, restarted = [], 0
    while time.monotonic() < end:
        time.sleep(1)
        memory.append((time.monotonic() - began, server.memory_kb()))
        if restarted < given.restarts and time.monotonic() - began > (restarted + 1) * 60 * given.minutes / (given.restarts + 1):
            restarted += 1
            server.process.kill()
            server.process.wait()
            server.start()
        if len(memory) % 120 == 0:
            print(f"{memory[-1][0]:.0f} s: {counts.answered} answered, {memory[-1][1] / 1024:.0f} MB", flush=True)
    server.stop()
    status = server.process.wait(300)
    ended = time.monotonic() - server.stopped
    for thread in threads:
        thread.join()
    settled = [kb for at, kb in memory if at > 12 * given.minutes] or [kb for _, kb in memory]
    growth = settled[-1] / settled[0] - 1
    median = statistics.median(counts.seconds) if counts.seconds else float("nan")
    print(f"{given.clients} clients, {given.minutes} minutes: {counts.answered} answers as weft generate's, "
          f"{len(counts.wrong)} others, {len(counts.lost)} lost, {counts.left} left, {counts.busy} refused (429), "
          f"{counts.again} tried again, {counts.late} too late; median {median:.2f} s")
    print(f"memory {settled[0] / 1024:.0f} to {settled[-1] / 1024:.0f} MB ({100 * growth:+.1f} %), most "
          f"{max(kb for _, kb in memory) / 1024:.0f} MB; the server ended {ended:.1f} s after SIGTERM with status {status}")
    for wrong in counts.wrong[:3] + counts.lost[:3]:
        print(wrong)
    sys.exit(1 if counts.wrong or counts.lost or status or growth > 0.1 or not counts.answered else 0)


if __name__ == "__main__":
    main()
