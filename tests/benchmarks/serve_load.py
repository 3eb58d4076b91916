"""Eight clients on `phirt serve` for ten minutes, clients that are killed, ten thousand hostile requests:
what is answered, how fast, and whether memory stays flat.

    python tests/benchmarks/serve_load.py [BUNDLE] [--seconds 600] [--clients 8] [--hostile 10000]

The server is the command itself, in a process of its own, with a short queue so that some requests find it
full. Clients are OpenAI's: chat, streaming, pictures, sound, tools, schemas, responses, and streams that are
left in the middle. Anything but an answer or a clear 429 is a failure. Memory is the server's resident size,
read every second; that of the last minute must not be more than 5 % above that of the first minute after a
tenth of the time, in runs of five minutes and more. How soon /health answers tells how free the event loop
is. Then processes that read a stream are killed, and the time until their slots are free is taken. The
hostile requests are those of `tests/server/hostile.py`, to a server of their own. Exit status 1 where
anything failed.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import importlib.util
import itertools
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import psutil

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "apps" / "examples"
PLACES = (ROOT / "tests" / "bundles" / "nano", ROOT / "phirt" / "bundles" / "nano")
PICTURE = "data:image/png;base64," + base64.b64encode((EXAMPLES / "shapes.png").read_bytes()).decode()
SOUND = EXAMPLES / "seven.flac"
SCHEMA = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "maxItems": 6}
LONG = {"type": "array", "items": {"enum": [7]}, "minItems": 900}  # as long as the context
TOOL = {"type": "function", "function": {"name": "GetWeather"}}
QUESTIONS = [
    "Hello", "Book a table for four in Rome.", "Play some jazz.", "How are you?", "Tell me about the sea.",
]  # fmt: skip
GROWTH, KILLED = 1.05, 20
SETTLED = 300.0  # seconds of a run after which memory may be judged
MOST_BYTES = 2  # megabytes of a request


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--hostile", type=int, default=10_000)
    arguments = parser.parse_args()
    bundle = arguments.bundle or next(place for place in PLACES if (place / "manifest.json").is_file())
    failures: list[str] = []
    with Server(bundle, queue=4) as server:
        load(server, arguments.clients, arguments.seconds, failures)
        kill(server, failures)
        server.stop(failures)
    with Server(bundle, queue=64) as server:
        hostile(server, arguments.hostile, failures)
        server.stop(failures)
    for failure in failures[:20]:
        print(f"FAILED: {failure}")
    sys.exit(bool(failures))


class Server:
    """`phirt serve` in a process of its own."""

    def __init__(self, bundle: Path, queue: int) -> None:
        command = "from phirt_apps.__main__ import main; main()"
        options = ["--port", "0", "--parallel", "2", "--queue", str(queue), "--max-body", str(MOST_BYTES)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "-m", str(bundle), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        found = re.search(r"http://(\S+):(\d+)", line)
        if found is None:
            raise SystemExit(line)
        self.port = int(found[2])
        self.url = f"http://{found[1]}:{found[2]}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    @property
    def client(self) -> openai.OpenAI:
        """A client that does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def figure(self, name: str) -> float:
        """A figure of /metrics, added up over its labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=60).read().decode()
        heads = (line.rpartition(" ") for line in text.splitlines())
        return sum(float(value) for head, _, value in heads if head.partition("{")[0] == name)

    def stop(self, failures: list[str]) -> None:
        """Ends it as a service manager would; it must have said nothing."""
        self._process.send_signal(signal.SIGTERM)
        _, rest = self._process.communicate(timeout=60)
        if (self._process.returncode, rest) != (143, ""):
            failures.append(f"the server ended with {self._process.returncode} and said {rest[:500]!r}")


def load(server: Server, clients: int, seconds: float, failures: list[str]) -> None:
    """Asks from many threads; prints what came of it."""
    counts: collections.Counter[str] = collections.Counter()
    times: dict[str, list[float]] = collections.defaultdict(list)
    pauses: list[float] = []  # until /health answers, which asks for nothing but the event loop
    memory: list[int] = []
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.memory)
            begin = time.monotonic()
            urllib.request.urlopen(f"{server.url}/health", timeout=60).read()
            pauses.append(time.monotonic() - begin)
            time.sleep(1.0)

    def ask(number: int) -> None:
        rng, client = random.Random(number), server.client
        while time.monotonic() < end:
            name = rng.choice(list(REQUESTS))
            begin = time.monotonic()
            outcome = _outcome(lambda name=name: REQUESTS[name](client, rng))
            with lock:
                counts[f"{name}: {outcome}" if outcome == "ok" else outcome] += 1
                times[name].append(time.monotonic() - begin)
                if outcome not in ("ok", "429"):
                    failures.append(f"{name}: {outcome}")
            if outcome == "429":
                time.sleep(rng.random() / 4)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in [*threads, watcher := threading.Thread(target=watch)]:
        thread.start()
    for thread in [*threads, watcher]:
        thread.join()
    print(f"{clients} clients, {seconds:g} s: {sum(counts.values())} requests")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    for name, taken in sorted(times.items()):
        print(f"  {name}: median {statistics.median(taken):.2f} s, longest {max(taken):.2f} s")
    print(f"  /health: median {statistics.median(pauses) * 1e3:.0f} ms, longest {max(pauses) * 1e3:.0f} ms")
    grown = _growth(memory)
    if grown > GROWTH and seconds >= SETTLED:
        failures.append(f"memory has grown to {grown:.2f} times what it was")


def _growth(memory: list[int]) -> float:
    minute = min(60, len(memory) // 4)
    settled = memory[len(memory) // 10 :]
    first, last = statistics.median(settled[:minute]), statistics.median(settled[-minute:])
    after, end, most = (f"{count / 1e6:.0f} MB" for count in (first, last, max(memory)))
    print(f"  memory: {after} after a tenth of the time, {end} at the end, {most} at most")
    return last / first


def _outcome(work: Callable[[], bool]) -> str:
    try:
        return "ok" if work() else "another answer"
    except openai.RateLimitError as error:
        return "429" if error.response.headers.get("retry-after") else "429 without Retry-After"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _said(client: openai.OpenAI, content: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="nano", messages=messages, **more)


def _chat(client: openai.OpenAI, rng: random.Random) -> bool:
    question = rng.choice(QUESTIONS)
    return bool(_said(client, question, max_tokens=40).choices[0].finish_reason)


def _stream(client: openai.OpenAI, rng: random.Random) -> bool:
    chunks = list(_said(client, rng.choice(QUESTIONS), max_tokens=40, stream=True, temperature=1.0))
    return chunks[-1].choices[0].finish_reason in ("stop", "length")


def _picture(client: openai.OpenAI, rng: random.Random) -> bool:
    text = {"type": "text", "text": "How many shapes are there?"}
    return (
        _said(client, [text, {"type": "image_url", "image_url": {"url": PICTURE}}]).choices[0].message.content
        == "three"
    )


def _sound(client: openai.OpenAI, rng: random.Random) -> bool:
    with SOUND.open("rb") as file:
        return client.audio.transcriptions.create(model="nano", file=file).text == "seven"


def _schema(client: openai.OpenAI, rng: random.Random) -> bool:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = _said(client, "Which?", response_format=form, temperature=1.0, max_tokens=100)
    return set(json.loads(answer.choices[0].message.content)) <= {"a", "b", "c"}


def _tool(client: openai.OpenAI, rng: random.Random) -> bool:
    answer = _said(client, rng.choice(QUESTIONS), tools=[TOOL], tool_choice="required", max_tokens=200)
    choice = answer.choices[0]
    return choice.finish_reason == "length" or choice.message.tool_calls[0].function.name == "GetWeather"


def _response(client: openai.OpenAI, rng: random.Random) -> bool:
    first = client.responses.create(model="nano", input="Hello", max_output_tokens=30)
    items = [
        {"role": "user", "content": "Hello"},
        *first.output,
        {"role": "user", "content": rng.choice(QUESTIONS)},
    ]
    return bool(client.responses.create(model="nano", input=items, max_output_tokens=30).status)


def _leave(client: openai.OpenAI, rng: random.Random) -> bool:
    """Reads a part of a long answer and hangs up."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG}}
    with _said(client, "Count.", response_format=form, stream=True) as stream:
        return len(list(itertools.islice(stream, rng.randint(1, 30)))) > 0


REQUESTS: dict[str, Callable[[openai.OpenAI, random.Random], bool]] = {
    "chat": _chat, "stream": _stream, "picture": _picture, "sound": _sound, "schema": _schema, "tool": _tool,
    "responses": _response, "left": _leave,
}  # fmt: skip


def kill(server: Server, failures: list[str]) -> None:
    """Kills processes in the middle of a stream; prints how soon their slots are free."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG}}
    question = {"messages": [{"role": "user", "content": "x"}], "stream": True, "response_format": form}
    seconds = []
    for _ in range(KILLED):
        reader = subprocess.Popen(
            ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d",
             json.dumps(question)], stdout=subprocess.PIPE,
        )  # fmt: skip
        assert reader.stdout is not None
        for _ in range(6):
            reader.stdout.readline()
        reader.kill()
        begin = time.monotonic()
        while server.figure("phirt_requests_working") and time.monotonic() < begin + 30:
            pass
        seconds.append(time.monotonic() - begin)
        reader.communicate()
    print(f"{KILLED} readers killed: their slots were free after {statistics.median(seconds) * 1e3:.0f} ms, "
          f"at most {max(seconds) * 1e3:.0f} ms")  # fmt: skip
    if max(seconds) > 1.0:
        failures.append("a killed client kept its slot")


def hostile(server: Server, count: int, failures: list[str]) -> None:
    """Sends hostile requests; prints how they were refused."""
    made = _hostile_module()
    statuses: collections.Counter[int] = collections.Counter()
    begin, before = time.monotonic(), server.memory

    def send(one: Any) -> None:
        try:
            status, body = made.send(server.port, one, 120)
            wrong = made.complaint(status, body)
            if status == 429:  # the queue was full, which is clear enough
                wrong = None
        except OSError as error:
            status, wrong = 0, f"{type(error).__name__}: {error}"
        statuses[status] += 1
        if wrong is not None:
            failures.append(f"{one.kind}: {wrong}; the request begins {one.raw[:200]!r}")

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for _ in pool.map(send, itertools.islice(made.requests(2026), count)):
            pass
    after = server.memory
    shown = ", ".join(f"{status} {number}" for status, number in sorted(statuses.items()))
    print(f"{count} hostile requests in {time.monotonic() - begin:.0f} s: {shown}")
    print(f"  memory: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
    working = server.figure("phirt_requests_working")
    if working or server.client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Hello"}], max_tokens=3
    ).choices[0].finish_reason not in ("stop", "length"):
        failures.append("the server does not answer any more")


def _hostile_module() -> ModuleType:
    path = ROOT / "tests" / "server" / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
