"""One stage of a recipe as data: what it starts from, what it trains, on what, for how long.

Knows fields and their ranges. Knows nothing of files, tensors, or of what any objective learns from: an
objective brings the description of its own data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Protocol

from phirt.errors import ConfigError
from phirt.fields import Length, Matching, Range
from phirt_export.reference import ModelConfig
from phirt_train.stage_fields import Gate, RopeChange

StageName = Annotated[str, Matching("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "a name of letters, digits, - and _")]
Probability = Annotated[float, Range(0.0, 1.0)]
Pattern = Annotated[
    str, Matching(r"[*]?[A-Za-z0-9_.]{1,200}", "a part of parameters' names, such as *lora_A")
]


ScheduleKind = Literal["cosine", "linear", "wsd"]
Decay = Literal["linear", "cosine", "1-sqrt"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps, and how the weights follow their gradients.

    Attributes:
        peak: the rate after the warm-up; left out where the schedule of an earlier stage goes on.
        kind: how it falls after the warm-up to `final_ratio`·peak: over all steps as a `cosine` or `linear`;
            or `wsd`: it stays, and falls in the last `decay_share` of the steps as `decay` says.
        warmup_steps: steps of the linear rise to the peak; left out in a recipe, of a stage of fewer steps a
            tenth of those.
        continues: an earlier stage, whose optimiser moments are taken over. Without a peak its schedule goes
            on where it stood, with a length of both stages together; with a peak the rate rises to it from
            where it stood.
        clip_norm: the longest gradient; longer ones are shortened.
        muon: orthogonalise the updates of hidden matrices and convolutions (Muon); everything else takes
            AdamW.
        spike_sigma, spike_steps: the stage stops where its loss or the length of its gradient stays so many
            deviations over their mean of the last 100 steps for so many steps; a sigma of 0 never stops it.
    """

    peak: Annotated[float, Range(1e-9, 10.0)] | None = None
    kind: ScheduleKind = "cosine"
    warmup_steps: Annotated[int, Range(0, 10**9)] = 100
    final_ratio: Probability = 0.05
    decay: Decay = "linear"
    decay_share: Probability = 0.1
    continues: StageName | None = None
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.05
    clip_norm: Annotated[float, Range(1e-6, 1e6)] = 1.0
    beta2: Annotated[float, Range(0.0, 0.999999)] = 0.98
    muon: bool = False
    spike_sigma: Annotated[float, Range(0.0, 1e6)] = 12.0
    spike_steps: Annotated[int, Range(1, 10**6)] = 25

    def __post_init__(self) -> None:
        if self.peak is None and self.continues is None:
            raise ValueError("'peak' is missing, expected the rate after the warm-up")
        fixed = ("kind", "warmup_steps", "final_ratio", "decay", "decay_share")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if self.resumes and (given := [n for n in fixed if getattr(self, n) != defaults[n]]):
            raise ValueError(
                f"{given[0]} is given, and stage {self.continues}, whose schedule goes on, decides it; leave "
                "it out, or give a peak to warm up to"
            )

    @property
    def resumes(self) -> bool:
        """Whether the schedule of an earlier stage goes on, with no warm-up of its own."""
        return self.continues is not None and self.peak is None


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
        micro_batch: items that a forward pass takes at once, as memory allows; by default all of a step. The
            gradients are those of the whole step.
        rates: what the schedule's rate is multiplied by for some of the parameters; of the patterns (as in
            `trains`; those of a stage's own head begin with "head.") the first that fits counts.
        checkpoint_activations: keep of each decoder layer its input alone and compute it again for the
            gradient: less memory for a third more work.
        workers: processes that make batches ahead of the steps; by default as many as cores are left over.
        data: what the objective learns from, as the objective describes it.
        ema: decay of the averaged weights that the stage ends with; 0 keeps the last weights.
        quantize_aware: train the decoder's base weights on the int4 grid with this block size; 0 for off.
        copies: before training, parameters whose names begin with a key become copies of those whose names
            begin with its value.
        compile: let torch compile the forward pass, where the objective can and a compiler is at hand.
        checkpoint: weights from outside, taken before those of the stages: a checkpoint of any kind that is
            exported, or a file of tensors under the model's own names, as a stage of another run leaves it.
        takes: of the checkpoint, the tensors that one of these patterns fits; by default all.
        rope: what changes of the model's rotary embedding and context, here and in stages that start here.
        tokens: length in tokens in the place of steps; a scale multiplies it by its `token_scale`.
        item_tokens: tokens that an item counts as in `tokens`; by default those of a row, or one.
        gate: bounds of the loss and of figures on held-out data. A stage that misses one ends the run.
    """

    name: StageName
    objective: str
    trains: Annotated[tuple[Pattern, ...], Length(1, 256)]
    steps: Annotated[int, Range(1, 10**9)]
    batch: Annotated[int, Range(1, 1 << 16)]
    schedule: Schedule
    data: StageData
    starts_from: Annotated[tuple[StageName, ...], Length(0, 64)] = ()
    micro_batch: Annotated[int, Range(1, 1 << 16)] | None = None
    rates: Annotated[Mapping[Pattern, Annotated[float, Range(0.0, 1e6)]], Length(0, 256)] = dataclasses.field(
        default_factory=dict
    )
    checkpoint_activations: bool = False
    workers: Annotated[int, Range(0, 64)] | None = None
    ema: Annotated[float, Range(0.0, 0.999999)] = 0.0
    quantize_aware: Annotated[int, Range(0, 1 << 16)] = 0
    copies: Annotated[Mapping[str, str], Length(0, 64)] = dataclasses.field(default_factory=dict)
    compile: bool = False
    checkpoint: str | None = None
    takes: Annotated[tuple[Pattern, ...], Length(0, 256)] = ()
    rope: RopeChange | None = None
    tokens: Annotated[float, Range(1.0, 1e18)] | None = None
    item_tokens: Annotated[int, Range(1, 1 << 24)] | None = None
    gate: Gate = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.takes and self.checkpoint is None:
            raise ConfigError("takes says what of a checkpoint is taken, and none is named as 'checkpoint'")

    def files(self) -> tuple[str, ...]:
        """All files that the stage reads, as the recipe names them."""
        found = None if self.rope is None else self.rope.found
        return (*self.data.files(), *([] if found is None else [found]))

    def optional_files(self) -> tuple[str, ...]:
        """What it reads where it is there: an outcome is a function of it as of the others."""
        return tuple(getattr(self.data, "optional", ()))

    @property
    def tokens_of_item(self) -> int:
        """Tokens that an item of a batch counts as in a budget of tokens."""
        return self.item_tokens or int(getattr(self.data, "row_tokens", 1))

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
