"""Several objectives in one stage: text beside media, pre-training beside answers, each with its share.

A batch holds groups; a group holds a few items of one part, and which part that is follows from seed, step
and the group's number. Knows parts and their shares. Knows nothing of what parts learn from.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Matching, Range, read_dataclass
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.data.mixture import Points, Shares
from phirt_train.data.sampling import Consumed, Draws
from phirt_train.objective import DecoderPasses, Loss, Objective, ObjectiveKind, Share
from phirt_train.objectives import find_objective
from phirt_train.objectives.language_modeling import LanguageModeling
from phirt_train.stage import StageConfig, StageData

_REMEDY = "correct the part"
_Fraction = Annotated[float, Range(0.0, 1.0)]
_PartName = Annotated[str, Matching("[A-Za-z0-9_-]{1,64}", "a name of letters, digits, - and _")]


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the objectives.

    Attributes:
        objective, data: as in a stage.
        share: of the tokens, or how it runs over the stage, [[position, share], ...]; without it, what the
            other parts leave.
        ramp: share of the stage over which `share` grows from nothing to what it is.
        rows: items of a group.
        weight: what the part's loss is multiplied by.
    """

    objective: str
    data: Mapping[str, Any]
    share: _Fraction | Points | None = None
    ramp: _Fraction = 0.0
    rows: Annotated[int, Range(1, 1 << 16)] = 1
    weight: Annotated[float, Range(0.0, 1e6)] = 1.0
    read: StageData = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.ramp and not isinstance(self.share, float):
            raise ValueError("'ramp' is given, and 'share' is no number that it could lead to")
        if isinstance(self.share, tuple):
            places = [position for position, _ in self.share]
            if places != sorted(places) or any(share > 1 for _, share in self.share):
                raise ValueError("the positions of 'share' do not rise, or one of its shares is above 1")
        if self.objective == "mixture":
            raise ValueError("a part is a mixture; give its parts beside the others")
        kind = find_objective(self.objective)
        fields = Fields(dict(self.data), "data", ConfigError, _REMEDY, closed=True)
        object.__setattr__(self, "read", read_dataclass(kind.data, fields))

    @property
    def points(self) -> Points | None:
        """The share over the stage; None for what others leave."""
        if self.share is None or isinstance(self.share, tuple):
            return self.share
        return ((0.0, 0.0), (self.ramp, self.share)) if self.ramp else ((0.0, self.share),)


@dataclasses.dataclass(frozen=True)
class MixtureData:
    """The parts of a stage.

    Attributes:
        parts: by name.
        count: what shares are of: tokens, or items of whatever kind.
    """

    parts: Annotated[Mapping[_PartName, Part], Length(1, 64)]
    count: Literal["tokens", "items"] = "tokens"

    def __post_init__(self) -> None:
        points = [part.points for part in self.parts.values()]
        rest = [name for name, part in self.parts.items() if part.points is None]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} have no share; one part may take what the others leave")
        places = np.array(sorted({0.0, 1.0, *(place for own in points if own for place, _ in own)}))
        totals = _given(points, places).sum(axis=1)
        if (totals > 1 + 1e-9).any() and rest:
            raise ValueError(
                f"the shares add up to {totals.max():g}; at most 1 leaves something to {rest[0]}"
            )
        if not rest and (totals <= 0).any():
            raise ValueError(f"no part has a share at position {places[int(totals.argmin())]:g} of the stage")

    def shares(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares [n, parts] at positions [n] from 0 to 1."""
        points = [part.points for part in self.parts.values()]
        given = _given(points, positions)
        left = np.clip(1 - given.sum(axis=1), 0.0, 1.0)
        for number, own in enumerate(points):
            if own is None:
                given[:, number] = left
        return np.asarray(given / given.sum(axis=1, keepdims=True))

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where a part does not fit the model."""
        for name, part in self.parts.items():
            try:
                part.read.check(model)
            except ConfigError as error:
                raise ConfigError(f"part {name}: {error}") from error

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return [name for part in self.parts.values() for name in part.read.files()]

    @property
    def optional(self) -> tuple[str, ...]:
        """What parts leave out where it is missing."""
        return tuple(name for part in self.parts.values() for name in getattr(part.read, "optional", ()))


def _given(points: Iterable[Points | None], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = [
        np.interp(positions, [place for place, _ in own], [share for _, share in own])
        if own
        else np.zeros_like(positions)
        for own in points
    ]
    return np.stack(columns, axis=1)


class PartBatch(NamedTuple):
    """A group: the number of its part, and what that has prepared."""

    part: int
    batch: Any


class MixedObjectives:
    """The sum of the losses of all groups over the sum of their weights."""

    unit = "items"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, MixtureData)
        self.model, self.data, self._steps = model, data, stage.steps
        self._names = tuple(data.parts)
        first = [self._build(name, model, stage, context, stage.steps) for name in self._names]
        # Tokens of a group; a group is drawn as often as its part's tokens ask for.
        self._sizes = np.array([self._size(name, one) for name, one in zip(self._names, first, strict=True)])
        shares = Shares(self._names, ("",) * len(first), lambda at: data.shares(at) / self._sizes)
        self._draws = Draws(shares, stage.batch, stage.steps, context.seed)
        # What changes within a part runs over the part's own groups.
        lengths = self._draws.before(stage.steps).tolist()
        self.parts = [
            one if length == stage.steps else self._build(name, model, stage, context, max(1, length))
            for name, one, length in zip(self._names, first, lengths, strict=True)
        ]
        # With a word before: a module has attributes such as "train", and parts may be called so.
        heads = {f"part_{name}": one.head for name, one in zip(self._names, self.parts, strict=True)}
        self.head = nn.ModuleDict(heads)

    def _build(
        self, name: str, model: Model, stage: StageConfig, context: TrainingContext, steps: int
    ) -> Objective:
        part = self.data.parts[name]
        own = dataclasses.replace(
            stage, objective=part.objective, data=part.read, batch=part.rows, steps=steps, micro_batch=None
        )
        seed = (context.seed + zlib.crc32(name.encode())) & 0x7FFFFFFF
        return find_objective(part.objective).build(model, own, dataclasses.replace(context, seed=seed))

    def _size(self, name: str, objective: Objective) -> float:
        part = self.data.parts[name]
        if self.data.count == "items":
            return float(part.rows)
        tokens = getattr(objective, "item_tokens", None)
        if tokens is None:
            raise ConfigError(
                f"part {name} is of the objective {part.objective}, whose items are not made of tokens; set "
                'count = "items"'
            )
        return part.rows * float(tokens)

    def prepare(self, step: int, share: Share) -> list[PartBatch]:
        """The groups of this part of a step."""
        groups = share.of(self._draws.of(step))
        return [PartBatch(part, self.parts[part].prepare(number, Share())) for part, number in groups]

    def loss(self, batch: list[PartBatch]) -> Loss:
        """Over all that the parts learn."""
        losses = []
        for group in batch:
            own, factor = self.parts[group.part].loss(group.batch), self._weights[group.part]
            losses.append(Loss(own.total * factor, own.weight, self._rows[group.part]))
        total = losses[0].total
        for own in losses[1:]:
            total = total + own.total
        return Loss(total, sum(own.weight for own in losses), sum(own.units for own in losses))

    def decoder_passes(self, batch: list[PartBatch]) -> int:
        """Those of all groups; pages and rows take one, whatever learns from media alone none."""
        return sum(self._passes_of(self.parts[group.part], group.batch) for group in batch)

    @staticmethod
    def _passes_of(part: Objective, batch: Any) -> int:
        if isinstance(part, DecoderPasses):
            return part.decoder_passes(batch)
        return int(isinstance(part, LanguageModeling))

    @property
    def _weights(self) -> list[float]:
        return [part.weight for part in self.data.parts.values()]

    @property
    def _rows(self) -> list[int]:
        return [part.rows for part in self.data.parts.values()]

    def consumed(self, step: int) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source of each part, by part/source."""
        found = {}
        for name, part, groups in zip(self._names, self.parts, self._draws.before(step), strict=True):
            consumed = getattr(part, "consumed", None)
            for source, own in ({} if consumed is None else consumed(int(groups))).items():
                found[f"{name}/{source}"] = own
        return found

    def realised(self) -> list[dict[str, float]]:
        """For each hundredth of the steps the share of each part, by its mean tokens (or items) a group."""
        return self._draws.realised(self._sizes)

    def validate(self) -> dict[str, float]:
        """The figures of all parts; one that several have goes by part."""
        measured = {name: part.validate() for name, part in zip(self._names, self.parts, strict=True)}
        every = [figure for own in measured.values() for figure in own]
        return {
            figure if every.count(figure) == 1 else f"{name} {figure}": value
            for name, own in measured.items()
            for figure, value in own.items()
        }


KIND = ObjectiveKind(MixtureData, MixedObjectives)
