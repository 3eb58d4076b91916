"""phirt beside onnxruntime-genai and llama.cpp on the same weights: prefill and decoding, pair by pair.

    python3.11 -m venv PEERS
    CMAKE_ARGS=-DGGML_NATIVE=ON PEERS/bin/pip install -r tests/benchmarks/peers-requirements.txt
    python tests/benchmarks/peers.py FOLDER --peers-python PEERS/bin/python
    python tests/benchmarks/peers.py FOLDER --peers-python PEERS/bin/python --scale full --kv int8
    python tests/benchmarks/peers.py FOLDER --peers-python PEERS/bin/python --threads 1,2,4,8

Makes what FOLDER does not hold yet: a random checkpoint (904m: eight layers of Phi-4-mini's width, 904
million weights, 5 GB of disk in all; full: Phi-4-mini's size, 22 GB), exported by phirt, by
onnxruntime-genai's own builder (at its defaults, which is blocks of 32; and with blocks of 128 and fused gate
and up; `peers_genai.py` has it build part by part, because the whole of full takes it more than 24 GB of
memory), and as llama.cpp's Q4_0. Each runtime then runs in a process of its own with its model loaded
(`peers_worker.py`), the same number of threads and the same ids; phirt and one peer take turns, so that a
busy machine disturbs both alike, and who goes first changes from pair to pair; with several numbers of
threads, one after the other. Prints a Markdown table with the median of the pairs' ratios and their
quartiles. Leave the machine alone meanwhile.

On a CPU with AMX, llama.cpp built by gcc 12 ends with an illegal instruction: CC=clang CXX=clang++ before its
installation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from phirt.runtime.cpus import usable_cpus  # noqa: E402
from phirt_apps.machine import cpu_name, instruction_sets  # noqa: E402
from tests.checkpoints import text  # noqa: E402
from tests.checkpoints.write import write_checkpoint  # noqa: E402

HERE = Path(__file__).resolve().parent
RANKS = ROOT.parent / "shared" / "data" / "tokenizer" / "o200k_base.tiktoken"
BUNDLES = {"float32": "phirt", "int8": "phirt-int8"}  # by the type of cached keys and values
PHIRT = (sys.executable, "-c", "from phirt_apps.cli import main; main()")
# One format for all, as the peers have, whatever the default of the day is.
FORMAT = ("--bits", "4", "--method", "rtn")
_SETTLE_SECONDS = 0.2  # until the threads of the one that ran last sleep
_CONVERTERS = {"genai": "peers_genai.py", "llama": "peers_gguf.py"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A runtime to compare with: how the table calls it, its kind of worker, its model inside the folder."""

    title: str
    worker: str
    model: str
    builder_options: tuple[str, ...] = ()


PEERS = {
    "genai": Peer("its defaults (blocks of 32)", "genai", "genai-defaults"),
    "genai-128": Peer("blocks of 128", "genai", "genai-128", ("block_size=128", "fuse_mlp_gate_up=true")),
    "llama": Peer("Q4_0", "llama", "llama-q4_0.gguf"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One line for the workers, and how many tokens it makes of it."""

    title: str
    line: str
    tokens: int


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds of phirt and of a peer for one task, pair by pair."""

    task: Task
    threads: int
    pairs: tuple[tuple[float, float], ...]

    def text(self, against: str) -> str:
        """The row in Markdown: speeds as medians, ratio of speeds with quartiles."""
        ours = statistics.median(self.task.tokens / seconds for seconds, _ in self.pairs)
        theirs = statistics.median(self.task.tokens / seconds for _, seconds in self.pairs)
        first, median, third = quartiles([their / our for our, their in self.pairs])
        return (
            f"| {against} | {self.threads} | {self.task.title} | {ours:.1f} | {theirs:.1f} "
            f"| {median:.2f} ({first:.2f} to {third:.2f}) |"
        )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


class Worker:
    """A process of `peers_worker.py` that stays until it is closed."""

    def __init__(self, python: Path, kind: str, model: Path, threads: int, log: Path, foreign: bool) -> None:
        self._log = log
        self._errors = log.open("w")
        command = [str(python), str(HERE / "peers_worker.py"), kind, str(model), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=environment(log.parent, foreign),
        )  # fmt: skip
        self.runtime: str = self._answer()["runtime"]

    def seconds(self, line: str) -> float:
        """Seconds that a line of the protocol took. Ends the program where the worker has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a worker ended with status {self._process.wait()}; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process; what it held is given back before another starts."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def environment(folder: Path, foreign: bool) -> dict[str, str]:
    """What a process is told: nothing about threads, which each runtime is asked for itself, and a cache for
    phirt's prepared graphs; those of the peers' environment shall not find this one's packages.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    variables = {**kept, "HF_HUB_OFFLINE": "1", "PHIRT_CACHE": str(folder / "phirt-cache")}
    if foreign:
        variables.pop("PYTHONPATH", None)
    return variables


def prepare(folder: Path, scale: str, kv: str, peers_python: Path, peers: Sequence[str]) -> None:
    """Makes what is not there yet: the checkpoint, the bundle, the peers' models."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        say(f"writing a random checkpoint to {checkpoint}")
        write_checkpoint(checkpoint, "phi-4-mini", RANKS, scale=scale, changes=text.COMPARABLE)
    bundle = folder / BUNDLES[kv]
    if not bundle.is_dir():
        calibration = ["--calibration", str(ROOT / "README.md")] if kv == "int8" else []
        command = [*PHIRT, "export", str(checkpoint), "-o", str(bundle), "--kv", kv, *FORMAT, *calibration]
        call("phirt's export", command, folder)
    for peer in (PEERS[name] for name in peers):
        model = folder / peer.model
        if not model.exists():
            script = str(HERE / _CONVERTERS[peer.worker])
            command = [str(peers_python), script, str(checkpoint), str(model), *peer.builder_options]
            call(f"conversion to {peer.model}", command, folder)


def call(what: str, command: list[str], folder: Path) -> None:
    """Runs a command, or ends the program with the end of what it wrote."""
    say(f"{what}: running")
    done = subprocess.run(
        command,
        env=environment(folder, command[0] != sys.executable),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{what} failed with status {done.returncode}:\n{done.stderr[-2000:]}")


@contextlib.contextmanager
def closing(*workers: Worker) -> Iterator[None]:
    """Ends the workers, whatever happens."""
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def compare(ours: Worker, theirs: Worker, tasks: Sequence[Task], pairs: int, threads: int) -> Iterator[Row]:
    """Takes turns at each task; the first take of both is left out."""
    for task in tasks:
        taken = []
        for number in range(1 + pairs):
            times = {}
            for worker in (ours, theirs) if number % 2 else (theirs, ours):
                time.sleep(_SETTLE_SECONDS)
                times[worker] = worker.seconds(task.line)
            taken.append((times[ours], times[theirs]))
        say(f"{task.title}, {threads} threads: done")
        yield Row(task, threads, tuple(taken[1:]))


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """Compares with one peer after the other; returns the table."""
    tasks = [Task(f"prefill {n}", f"prefill {n}", n) for n in options.prefill]
    tasks += [
        Task(f"decode at {depth}", f"decode {depth} {options.steps}", options.steps)
        for depth in options.depths
    ]
    rows, runtime = [], ""
    for name in options.peers:
        for threads in options.threads:
            with closing_pair(folder, options, PEERS[name], threads) as (ours, theirs):
                runtime = ours.runtime
                against = f"{theirs.runtime}, {PEERS[name].title}"
                done = compare(ours, theirs, tasks, options.pairs, threads)
                rows += [row.text(against) for row in done]
    return [
        f"{options.scale}, {runtime}, keys and values in {options.kv}; {cpu_name()} "
        f"({', '.join(instruction_sets())}), {usable_cpus()} logical cores; median of {options.pairs} "
        "alternating pairs (quartiles).",
        "",
        "| against | threads | | phirt, tokens/s | peer, tokens/s | phirt is faster by |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


@contextlib.contextmanager
def closing_pair(
    folder: Path, options: argparse.Namespace, peer: Peer, threads: int
) -> Iterator[tuple[Worker, Worker]]:
    """phirt and a peer, each with its model loaded, and ends them."""
    say(f"loading phirt and {peer.model}, {threads} threads")
    model, log = folder / peer.model, folder / f"{peer.model}.log"
    ours = Worker(
        Path(sys.executable), "phirt", folder / BUNDLES[options.kv], threads, folder / "phirt.log", False
    )
    with closing(ours):
        theirs = Worker(options.peers_python, peer.worker, model, threads, log, True)
        with closing(theirs):
            yield ours, theirs


def say(message: str) -> None:
    """Progress, apart from the table."""
    print(message, file=sys.stderr, flush=True)


def numbers(given: str) -> list[int]:
    """A list such as 128,1024."""
    return [int(part) for part in given.split(",")]


def main() -> None:
    """Prepare, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where checkpoint and models go, one folder for each scale")
    parser.add_argument("--peers-python", type=Path, required=True, help="the peers' interpreter")
    parser.add_argument("--scale", choices=("904m", "full"), default="904m")
    parser.add_argument("--kv", choices=tuple(BUNDLES), default="float32", help="phirt's keys and values")
    parser.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=numbers, default=[2], metavar="N,...")
    parser.add_argument("--prefill", type=numbers, default=[1024], metavar="N,...")
    parser.add_argument("--depths", type=numbers, default=[128, 1024, 4096], metavar="N,...")
    parser.add_argument("--steps", type=int, default=32, help="tokens decoded in a take")
    options = parser.parse_args()
    options.peers_python = options.peers_python.absolute()  # a link to the interpreter must stay that link
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not RANKS.is_file():
        parser.error(f"{RANKS} is not there, of which the tokenizer is made")
    prepare(folder, options.scale, options.kv, options.peers_python, options.peers)
    print("\n".join(run(folder, options)))


if __name__ == "__main__":
    main()
