"""A model of the published size from checkpoint to answers: time, memory and size of its export; chat.

    python tests/benchmarks/full_size.py FOLDER                   5.57 billion random weights, 27 GB of disk
    python tests/benchmarks/full_size.py FOLDER --scale small     the same steps in seconds

Writes a random checkpoint in the original Phi-4-multimodal layout to FOLDER/checkpoint (kept for the next
time), exports it to FOLDER/bundle by `phirt export`, which is interrupted once on the way and started again,
and asks `phirt chat` about text, an image, a recording, both, and a prompt of about 2,000 tokens; the very
first start, which prepares the graphs for this machine in FOLDER/cache, is a request of its own. Each command
runs in a process of its own whose memory is sampled (Linux). Prints Markdown tables. The answers are noise,
as the weights are; times and memory are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Whoever starts this in the background has Ctrl-C ignored in all that it starts.
_HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PHIRT = (sys.executable, "-c", f"{_HEAR_CTRL_C}; from phirt_apps.cli import main; main()")
FORMAT = ("--bits", "4", "--method", "rtn")  # the figures of the README
LONG_PROMPT_TOKENS = 2000
NEW_TOKENS = 32
FREE_BYTES = {"small": 1 << 28, "full": 27_000_000_000}
SENTENCE = "The ferry leaves the harbour at seven, turns north, and reaches the island before noon. "
_EVERY_SECONDS = 0.02


@dataclasses.dataclass
class Memory:
    """Peaks of one process in bytes: resident in all, and of that what is not a page of a mapped file."""

    resident: int = 0
    anonymous: int = 0

    def sample(self, pid: int) -> None:
        """Take in the present state; nothing where the process has ended."""
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        for name in ("VmHWM", "RssAnon"):
            if name in fields:
                bytes_now = int(fields[name][0]) * 1024
                attribute = "resident" if name == "VmHWM" else "anonymous"
                setattr(self, attribute, max(getattr(self, attribute), bytes_now))


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished command."""

    status: int
    seconds: float
    memory: Memory
    stdout: str
    stderr: str


def run(
    command: Sequence[str], interrupt_when: Callable[[], bool] | None = None, cache: Path | None = None
) -> Run:
    """Run a command, sampling its memory; send it SIGINT once when the condition holds.

    `cache` is where it may keep prepared graphs.
    """
    memory, start = Memory(), time.monotonic()
    environment = {**os.environ, "PHIRT_CACHE": "off" if cache is None else str(cache)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    done = threading.Event()

    def watch() -> None:
        waiting = interrupt_when
        while not done.is_set():
            memory.sample(process.pid)
            if waiting is not None and waiting():
                process.send_signal(signal.SIGINT)
                waiting = None
            done.wait(_EVERY_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, stderr = process.communicate()
    done.set()
    watcher.join()
    return Run(process.returncode, time.monotonic() - start, memory, stdout, stderr)


def require(result: Run, what: str) -> Run:
    """The run, or the end of this program where it failed."""
    if result.status:
        sys.exit(f"{what} failed with status {result.status}:\n{result.stderr[-2000:]}")
    return result


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_checkpoint(folder: Path, scale: str) -> Path:
    """The random checkpoint, unless it is there."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        say(f"writing a random checkpoint to {checkpoint}")
        size = ["--scale", scale]
        require(run([sys.executable, "-m", "tests.checkpoints", "phi4mm", str(checkpoint), *size]), "writing")
    return checkpoint


def export(checkpoint: Path, bundle: Path) -> list[str]:
    """Export with one interruption; returns the table."""
    weights = size_of(checkpoint)
    data = bundle.with_name(f".{bundle.name}.partial") / "bundle" / "decoder.data"

    def is_under_way() -> bool:
        # Four bits of sixteen: at an eighth of the checkpoint about half of the bundle is written.
        try:
            return data.stat().st_size > weights // 8
        except OSError:
            return False

    command = [*PHIRT, "export", str(checkpoint), "-o", str(bundle), "--target", "cpu", *FORMAT]
    say(f"exporting to {bundle}, to be interrupted half way")
    first = run(command, is_under_way)
    runs = [first]
    if first.status == 130:
        assert not bundle.exists(), "an interrupted export has left a bundle"
        say("interrupted; exporting again")
        runs.append(require(run(command), "export"))
    else:
        require(first, "export")
    say(runs[-1].stderr.strip())
    peak = max(r.memory.resident for r in runs)
    anonymous = max(r.memory.anonymous for r in runs)
    times = " + ".join(f"{r.seconds:.0f}" for r in runs)
    interrupted = "interrupted once" if len(runs) == 2 else "finished before it could be interrupted"
    return [
        "| checkpoint | bundle | export, seconds | peak resident | of that not mapped files | |",
        "|---|---|---|---|---|---|",
        f"| {weights / 1e9:.2f} GB | {size_of(bundle) / 1e9:.2f} GB | {times} | {peak / 1e9:.2f} GB "
        f"| {anonymous / 1e9:.2f} GB | {interrupted} |",
    ]


def chats(bundle: Path, image: Path, audio: Path, max_new: int) -> list[str]:
    """One request of each kind; returns the table."""
    counted = require(run([*PHIRT, "tokens", "-m", str(bundle), "--json", SENTENCE * 10]), "counting")
    repeats = round(10 * LONG_PROMPT_TOKENS / json.loads(counted.stdout)["total"])
    both = ["--image", str(image), "--audio", str(audio), "Answer the question."]
    requests: dict[str, list[str]] = {
        "first start: image and audio": both,
        "text": [SENTENCE],
        "image": ["--image", str(image), "What is in this picture?"],
        "audio": ["--audio", str(audio), "Transcribe the audio clip into text."],
        "image and audio": both,
        "long text": [SENTENCE * repeats],
        # With the image's and the clip's tokens 2,000 in all.
        "image, audio and long text": [*both[:-1], SENTENCE * round(repeats * 0.72)],
    }
    table = [
        "| request | prompt tokens | first token | prefill | decode | whole command | peak resident "
        "| not mapped files | above the bundle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arguments in requests.items():
        say(f"asking: {name}")
        options = ["-m", str(bundle), "--json", "--stats", "--max-new-tokens", str(max_new)]
        result = run([*PHIRT, "chat", *options, *arguments], cache=bundle.with_name("cache"))
        table.append(row(name, require(result, name), size_of(bundle)))
    return table


def row(name: str, result: Run, bundle_bytes: int) -> str:
    """One request's figures."""
    answer: dict[str, Any] = json.loads(result.stdout)
    usage, timings, memory = answer["usage"], answer["timings"], result.memory
    fresh = usage["prompt_tokens"] - usage["cached_tokens"]
    return (
        f"| {name} | {usage['prompt_tokens']} | {timings['first_token']:.2f} s "
        f"| {fresh / timings['prefill']:.1f} tokens/s | {answer['tokens_per_second']:.1f} tokens/s "
        f"| {result.seconds:.1f} s | {memory.resident / 1e9:.2f} GB | {memory.anonymous / 1e9:.2f} GB "
        f"| {(memory.resident - bundle_bytes) / 1e9:+.2f} GB |"
    )


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run all steps and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where checkpoint and bundle go, absolute or from here")
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument("--image", type=Path, default=ROOT / "apps/examples/shapes.png")
    parser.add_argument("--audio", type=Path, default=ROOT / "apps/examples/seven.flac")
    parser.add_argument("--max-new-tokens", type=int, default=NEW_TOKENS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, FREE_BYTES[options.scale]
    if free < needed and not (folder / "checkpoint").is_dir():
        parser.error(f"{folder} has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} GB are needed")
    checkpoint = write_checkpoint(folder, options.scale)
    exported = export(checkpoint, folder / "bundle")
    image, audio = options.image.absolute(), options.audio.absolute()
    asked = chats(folder / "bundle", image, audio, options.max_new_tokens)
    print("\n".join([*exported, "", *asked]))


if __name__ == "__main__":
    main()
