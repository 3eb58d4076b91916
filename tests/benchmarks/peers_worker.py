"""One runtime with one loaded model, for `peers.py`: takes a line, computes, answers with a line.

    python tests/benchmarks/peers_worker.py phirt|genai|llama MODEL THREADS

    prefill 1024      runs 1024 ids into an empty cache, up to the logits of the last one
    decode 128 32     with 128 ids cached and one step run, times 32 more steps
    quit

Answers are JSON objects: {"runtime": name with version} at first, then {"seconds": …} for each line. What the
cache holds at a depth is kept from one `decode` to the next. Needs the package of that runtime alone, so it
runs in an environment in which phirt is not installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTEXT = 8192
_LLAMA_BATCH = 512
_USUAL_IDS = 30_000  # none of them special in the vocabularies compared


def ids_of(count: int) -> list[int]:
    """The same ids for every runtime."""
    return [(7919 * i + 13) % _USUAL_IDS for i in range(count)]


class Phirt:
    """`Engine.prefill` and `Engine.decode_step` with the likeliest id."""

    def __init__(self, model: Path, threads: int) -> None:
        import phirt
        from phirt_apps.machine import products

        versions = f"phirt {version('phirt')}, onnxruntime {version('onnxruntime')}"
        self.name = f"{versions}, products by {products()}"
        self._engine = phirt.load(model, threads=threads).generator.new_engine()
        self._token = 0

    def clear(self) -> None:
        self._engine.truncate(0)

    def prefill(self, ids: list[int]) -> None:
        self._token = int(self._engine.prefill(ids).argmax())

    def resume(self, depth: int) -> None:
        self._engine.truncate(depth)
        self.step()

    def step(self) -> None:
        self._token = int(self._engine.decode_step(self._token).argmax())


class Genai:
    """`Generator.append_tokens` and `generate_next_token`, greedy, as its builder configures it."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self.name = f"onnxruntime-genai {version('onnxruntime-genai')}"
        config = og.Config(str(model))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self._og, self._model = og, og.Model(config)
        self._generator: Any = None

    def clear(self) -> None:
        self._generator = None
        params = self._og.GeneratorParams(self._model)
        # An end that random weights happen to choose must not stop it.
        params.set_search_options(do_sample=False, max_length=CONTEXT, min_length=CONTEXT)
        self._generator = self._og.Generator(self._model, params)

    def prefill(self, ids: list[int]) -> None:
        self._generator.append_tokens(ids)

    def resume(self, depth: int) -> None:
        self._generator.rewind_to(depth)
        self._generator.append_tokens(ids_of(1))
        self._generator.generate_next_token()  # only chooses: the logits are those of the appended id

    def step(self) -> None:
        self._generator.generate_next_token()


class Llama:
    """`llama_decode` in batches of 512, then id by id, without sampling, as llama.cpp's own bench does."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp as lib

        self.name = f"llama-cpp-python {version('llama-cpp-python')}"
        self._lib = lib
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, _LLAMA_BATCH, _LLAMA_BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        self._memory = lib.llama_get_memory(self._context)

    def _run(self, ids: list[int]) -> None:
        lib = self._lib
        tokens = (lib.llama_token * len(ids))(*ids)
        if status := lib.llama_decode(self._context, lib.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit(f"llama_decode failed with status {status}")
        lib.llama_synchronize(self._context)

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)

    def prefill(self, ids: list[int]) -> None:
        for start in range(0, len(ids), _LLAMA_BATCH):
            self._run(ids[start : start + _LLAMA_BATCH])

    def resume(self, depth: int) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, 0, depth, -1):
            raise SystemExit(f"llama.cpp cannot go back to {depth} ids")
        self.step()

    def step(self) -> None:
        self._run(ids_of(1))


# Each can `clear` its cache, `prefill` ids, `resume` (go back to a depth and run one step), and `step`.
RUNTIMES: dict[str, Callable[[Path, int], Any]] = {"phirt": Phirt, "genai": Genai, "llama": Llama}


class Worker:
    """Answers the lines of the protocol with times."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._depth: int | None = None  # of the ids that the cache holds, if it does

    def prefill(self, count: int) -> float:
        """Seconds of a prefill; getting an empty cache is not timed."""
        self._depth = None
        ids = ids_of(count)
        self._runtime.clear()
        start = time.perf_counter()
        self._runtime.prefill(ids)
        return time.perf_counter() - start

    def decode(self, depth: int, steps: int) -> float:
        """Seconds of the steps after the first."""
        if self._depth != depth:
            self.prefill(depth)
            self._depth = depth
        self._runtime.resume(depth)
        start = time.perf_counter()
        for _ in range(steps):
            self._runtime.step()
        return time.perf_counter() - start


def main() -> None:
    """Serve lines until `quit` or the end of the input."""
    name, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    runtime = RUNTIMES[name](model, threads)
    print(json.dumps({"runtime": runtime.name}), file=answers, flush=True)
    worker = Worker(runtime)
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "quit":
            return
        seconds = (worker.prefill if what == "prefill" else worker.decode)(*map(int, numbers))
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
