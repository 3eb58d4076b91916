"""The trained model as bundles with graphs for other machines, and prompts that no calibration has seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.manifest import Manifest
from phirt.bundle.variants import as_variant
from phirt.generate.engine import Engine
from phirt.generate.sequence import Prompt
from phirt_export.variants.adding import add_targets
from phirt_export.variants.sizes import StaticOptions

# The bundle that everything here is shown with.
NANO = Path(__file__).resolve().parents[1] / "bundles" / "nano"
EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"
STATIC = StaticOptions(prefill=32, window=160, audio_tokens=64)

# None of them is in `phirt_export/calibration/text`, on which the graphs are calibrated.
TEXTS = (
    "What is the largest ocean?", "Book a table for two tonight.", "Who wrote Hamlet?",
    "What is water made of?", "Give me a synonym of happy.", "What is the weather like in Paris?",
    "What is a bridge?", "Thank you!", "Good morning.", "Set an alarm for six.", "Tell me about the sea.",
    "What is a triangle?",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """A prompt with the answer that the CPU's graphs give: teacher-forced, each id is to be predicted."""

    prompt: Prompt
    answer: tuple[int, ...]

    def forced(self) -> Prompt:
        """The prompt with all of the answer but its last id."""
        ids = np.concatenate([self.prompt.ids, np.array(self.answer[:-1], np.int64)])
        return Prompt(ids, self.prompt.spans, self.prompt.adapter)

    def agreement(self, engine: Engine) -> tuple[int, int]:
        """How many ids an engine predicts, and how many there are."""
        scored = engine.score_prompt(self.forced(), len(self.prompt.ids) - 1)
        return sum(int(row.argmax()) == i for row, i in zip(scored, self.answer, strict=True)), len(
            self.answer
        )


def answered(model: phirt.Model, text: str, **media) -> Answered:
    message = model.generator.message(text, **media)
    prompt = model.generator.encode_prompt([message])
    result = model.generator.stream([message], max_new_tokens=24, temperature=0.0).result
    return Answered(prompt, result.token_ids)


def made(folder: Path, bits: int) -> Path:
    static = dataclasses.replace(STATIC, bits=bits)
    return add_targets(NANO, folder, ["cpu", "qnn"], options=static)


def variant_of(bundle: Path, name: str) -> Manifest:
    return as_variant(load_manifest(bundle), name)
