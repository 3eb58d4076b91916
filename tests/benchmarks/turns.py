"""What long use costs: memory over a thousand short turns, the second turn of a long conversation, a restart.

    python tests/benchmarks/turns.py [BUNDLE] [--turns 1000] [--history 2000] [--pairs 5]

The bundle is nano where none is given. Memory: short conversations one after the other in one process, every
tenth with one of ten pictures (features of up to 256 MB of pictures are remembered, which is no leak);
resident memory (Linux) after each hundred, whose spread is taken from the second hundred on. Second turn: the
time to the first token of a question behind a history, against the same question alone, in alternating pairs.
Restart: a conversation with a picture is saved and taken up by another process, which says how many graphs it
ran for the picture and how many tokens it ran again. Prints one line for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import phirt

NANO = Path(__file__).resolve().parents[1] / "bundles/nano"
SENTENCE = "The ferry leaves the harbour at seven, turns north, and reaches the island before noon. "
QUESTION = (
    "Which way does the ferry turn after it has left the harbour, and does it reach the island by noon?"
)
RESTART = """
import dataclasses, json, sys
import phirt
from phirt.runtime.session import LazySession
ran = []
run = LazySession.run
LazySession.run = lambda self, inputs: (ran.append(self), run(self, inputs))[1]
chat = phirt.load(sys.argv[1]).load_chat(sys.argv[2])
usage = chat.send("And now?", config=phirt.GenerationConfig(max_new_tokens=2)).result.usage
print(json.dumps({"encoded": len(ran), **dataclasses.asdict(usage)}))
"""


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def memory_over_turns(model: phirt.Model, turns: int) -> str:
    """Resident memory after each hundred of short conversations."""
    config, seen = phirt.GenerationConfig(max_new_tokens=8), []
    colours = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    known = [Image.fromarray(pixels) for pixels in colours] if "image" in model.manifest.modalities else []
    for turn in range(1, turns + 1):
        pictures = [known[turn // 10 % 10]] if known and turn % 10 == 0 else []
        model.chat().send(f"Turn {turn}: hello?", images=pictures, config=config).text()
        if turn % 100 == 0:
            seen.append(resident())
    later = seen[1:]
    growth = (max(later) - min(later)) / min(later)
    figures = ", ".join(f"{size / 1e6:.0f}" for size in seen)
    return f"memory over {turns} turns: {figures} MB; spread from the second hundred on {growth:.1%}"


def second_turn(model: phirt.Model, history: int, pairs: int) -> str:
    """Time to the first token behind `history` tokens, over that of the question alone."""
    one = phirt.GenerationConfig(max_new_tokens=1)
    repeats = history // model.count_tokens(SENTENCE * 10).total * 10 or 1
    long = model.chat()
    long.send(SENTENCE * repeats, config=one).text()
    ratios, times = [], []
    for pair in range(pairs):
        question = f"{pair + 1}. {QUESTION}"  # another one each time, or its positions would be there already
        chats = {"behind": long.fork(), "alone": model.chat()}
        order = list(chats)[:: 1 if pair % 2 else -1]
        seconds = {}
        for name in order:
            result = chats[name].send(question, config=one).result
            seconds[name] = result.timings.first_token
            tokens = result.usage.prompt_tokens - result.usage.cached_tokens
            if name == "behind":
                behind = f"{tokens} new of {result.usage.prompt_tokens}"
        ratios.append(seconds["behind"] / seconds["alone"])
        times.append(seconds["behind"])
    low, _, high = statistics.quantiles(ratios, n=4)
    return (
        f"second turn ({behind} tokens): first token after {statistics.median(times):.2f} s, "
        f"{statistics.median(ratios):.2f} (quartiles {low:.2f} to {high:.2f}) times the question alone"
    )


def restart(bundle: str, model: phirt.Model) -> str:
    """What another process runs again of a saved conversation with a picture."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    chat = model.chat()
    chat.send("What is this?", images=[picture], config=phirt.GenerationConfig(max_new_tokens=8)).text()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.phirt"
        chat.save(path)
        command = [sys.executable, "-c", RESTART, bundle, str(path)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = json.loads(printed)
    fresh = usage["prompt_tokens"] - usage["cached_tokens"]
    return (
        f"restart: {usage['encoded']} graphs run for the picture, {fresh} of {usage['prompt_tokens']} tokens "
        "run (the new question)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default=str(NANO))
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--history", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    model = phirt.load(options.bundle)
    history = min(options.history, model.manifest.geometry.context - 200)
    if options.turns >= 300:
        print(memory_over_turns(model, options.turns), flush=True)
    if "image" in model.manifest.modalities:
        print(restart(options.bundle, model), flush=True)
    print(second_turn(model, history, options.pairs), flush=True)


if __name__ == "__main__":
    main()
