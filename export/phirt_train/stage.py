"""One stage of a recipe as data: what it starts from, what it trains, on what, for how long.

Knows fields and their ranges. Knows nothing of files, tensors, or of what any objective learns from: an
objective brings the description of its own data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Protocol

from phirt.errors import ConfigError
from phirt.fields import Length, Matching, Range
from phirt_export.reference import ModelConfig

StageName = Annotated[str, Matching("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "a name of letters, digits, - and _")]
Probability = Annotated[float, Range(0.0, 1.0)]
Pattern = Annotated[
    str, Matching(r"[*]?[A-Za-z0-9_.]{1,200}", "a part of parameters' names, such as *lora_A")
]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps: linear warm-up, then a cosine from `peak` to `final_ratio`·peak.

    `muon` orthogonalises the updates of hidden matrices and convolutions (Muon); everything else takes AdamW.
    """

    peak: Annotated[float, Range(1e-9, 10.0)]
    warmup_steps: Annotated[int, Range(0, 10**9)] = 100
    final_ratio: Probability = 0.05
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.05
    clip_norm: Annotated[float, Range(1e-6, 1e6)] = 1.0
    beta2: Annotated[float, Range(0.0, 0.999999)] = 0.98
    muon: bool = False


class StageData(Protocol):
    """What an objective learns from: a frozen dataclass that the recipe's `[stage.data]` is read into."""

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where it does not fit the model."""

    def files(self) -> Iterable[str]:
        """The JSON lines that must be there, as the recipe names them."""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage.

    Attributes:
        name: folder of the stage under the run folder.
        objective: a module of `phirt_train.objectives`.
        starts_from: stages whose weights are taken; empty for fresh weights, or those of the recipe's base.
        trains: beginnings of the names of the parameters that are trained, or, with a leading `*`, any part
            of them; all others stay frozen.
        steps, batch: length and items of a step.
        data: what the objective learns from, as the objective describes it.
        ema: decay of the averaged weights that the stage ends with; 0 keeps the last weights.
        quantize_aware: train the decoder's base weights on the int4 grid with this block size; 0 for off.
        copies: before training, parameters whose names begin with a key become copies of those whose names
            begin with its value.
        compile: let torch compile the forward pass, where the objective can and a compiler is at hand.
    """

    name: StageName
    objective: str
    trains: Annotated[tuple[Pattern, ...], Length(1, 256)]
    steps: Annotated[int, Range(1, 10**9)]
    batch: Annotated[int, Range(1, 1 << 16)]
    schedule: Schedule
    data: StageData
    starts_from: Annotated[tuple[StageName, ...], Length(0, 64)] = ()
    ema: Annotated[float, Range(0.0, 0.999999)] = 0.0
    quantize_aware: Annotated[int, Range(0, 1 << 16)] = 0
    copies: Annotated[Mapping[str, str], Length(0, 64)] = dataclasses.field(default_factory=dict)
    compile: bool = False

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the stage does not fit the model."""
        block, decoder = self.quantize_aware, model.decoder
        inputs = (decoder.hidden_size, decoder.num_heads * decoder.head_dim, decoder.intermediate_size)
        if block and (block < 16 or block & (block - 1) or any(size % block for size in inputs)):
            raise ConfigError(
                f"quantize_aware is {block}; accepted: 0, or a power of two from 16 on that divides the "
                f"decoder's inputs {', '.join(map(str, sorted(set(inputs))))}"
            )
        self.data.check(model)
