"""Asks a `weft serve` of the embedded base with OpenAI's own client: models, chats, choices, streams, texts, errors, and a
client that leaves. Answers must be those of `weft generate`. Needs `pip install openai`.

    python scripts/openai_client.py WEFT

WEFT is the program. What is asked and answered is printed.
"""

import pathlib
import subprocess
import sys

import openai

from checks import check, report

ASKED = {"model": "tiny-base", "messages": [{"role": "user", "content": "What is 7 + 5?"}], "max_tokens": 16}


def tell(what, answer):
    print(f"{what}: {answer!r}")


def start(weft, *options):
    """A server on a free port, and its address."""
    server = subprocess.Popen([weft, "serve", "--model", "tiny-base", "--port", "0", "--quiet", *options],
                              stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    check("http://" in line, f"the server says where it is: {line!r}")
    return server, line.rsplit(" ", 1)[1].strip()


def generated(weft, *options):
    done = subprocess.run([weft, "generate", "--model", "tiny-base", *options], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    check(done.returncode == 0, done.stderr)
    return done.stdout.removesuffix("\n")


def refused(kind, call):
    try:
        call()
    except kind as error:
        tell(kind.__name__, error.body["message"])
        return check(error.body["message"], "an error has a sentence")
    check(False, f"{kind.__name__} is raised")


def chats(client, weft):
    expected = generated(weft, "--prompt", "What is 7 + 5?", "--gen-length", "16")
    reply = client.chat.completions.create(**ASKED)
    tell("chat", reply.choices[0].message.content)
    check(reply.choices[0].message.content == expected, f"the answer is that of weft generate, {expected!r}")
    check(reply.choices[0].finish_reason in ("stop", "length") and reply.usage.completion_tokens > 0, "it is counted")
    drawn = client.chat.completions.create(**ASKED, n=3, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in drawn.choices]
    tell("three choices", texts)
    alone = generated(weft, "--prompt", "What is 7 + 5?", "--gen-length", "16", "--temperature", "1", "--seed", "5")
    check(len(texts) == 3 and texts[0] == alone, f"the first choice is that of weft generate, {alone!r}")
    options = {"include_usage": True}
    stream = client.chat.completions.create(**ASKED | {"max_tokens": 32}, stream=True, stream_options=options,
                                            extra_body={"block_length": 8, "diffusion_steps": 32})
    parts = list(stream)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    tell("stream", [part.choices[0].delta.content for part in parts if part.choices])
    whole = generated(weft, "--prompt", "What is 7 + 5?", "--gen-length", "32", "--block-length", "8", "--diffusion-steps", "32")
    check(text == whole, f"a stream joins to the answer of weft generate, {whole!r}")
    check(parts[-1].usage.total_tokens > 0, "a stream ends with its usage")
    stop = expected[len(expected) // 2] if expected else "x"
    stopped = client.chat.completions.create(**ASKED, stop=[stop])
    tell(f"stop at {stop!r}", stopped.choices[0].message.content)
    check(stopped.choices[0].message.content == expected.split(stop)[0], "the answer ends before the stop string")


def texts(client, weft):
    reply = client.completions.create(model="tiny-base", prompt="7 + 5 =", max_tokens=8)
    expected = generated(weft, "--raw", "--prompt", "7 + 5 =", "--gen-length", "8")
    tell("text", reply.choices[0].text)
    check(reply.choices[0].text == expected, f"the text is that of weft generate --raw, {expected!r}")
    parts = client.completions.create(model="tiny-base", prompt="7 + 5 =", max_tokens=8, stream=True)
    check("".join(part.choices[0].text for part in parts) == expected, "a stream joins to the text")


def main():
    weft = str(pathlib.Path(sys.argv[1]).resolve())
    server, address = start(weft, "--api-key", "secret", "--max-length", "8192")
    try:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        names = [model.id for model in client.models.list()]
        tell("models", names)
        check(names == ["tiny-base"] and client.models.retrieve("tiny-base").id == "tiny-base", "the base is listed")
        chats(client, weft)
        texts(client, weft)
        refused(openai.NotFoundError, lambda: client.chat.completions.create(**ASKED | {"model": "gpt"}))
        refused(openai.BadRequestError, lambda: client.chat.completions.create(**ASKED, logprobs=True))
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="guess", max_retries=0)
        refused(openai.AuthenticationError, lambda: wrong.chat.completions.create(**ASKED))
        long = ASKED | {"max_tokens": 4000}
        stream = client.chat.completions.create(**long, stream=True, extra_body={"block_length": 8, "diffusion_steps": 4000})
        check(next(part for part in stream if part.choices and part.choices[0].delta.content), "it begins")
        stream.close()
        after = client.with_options(timeout=60).chat.completions.create(**ASKED)
        check(after.choices[0].message.content, "a stream that is left is not waited for")
    finally:
        server.terminate()
    check(server.wait(60) == 0, "SIGTERM ends the server in peace")
    report()


if __name__ == "__main__":
    main()
