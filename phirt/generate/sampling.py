"""From logits to the next id: settings, logits processors, samplers.

Knows numbers only. Knows nothing of sessions, caches or text; stop strings are carried here and applied by
`prompt.stop_strings`.

A *logits processor* is a callable that takes float32 logits [vocab] and the ids so far (the prompt's and the
answer's), and returns logits [vocab]; it may work in place. A *sampler* takes logits [vocab], with -inf for
what may not be chosen, and returns an id. A request's own processors see the model's logits first, in their
order; then come the repetition penalty, temperature, top-k, top-p and min-p of the settings; a request's own
sampler takes the place of the greedy or random choice. Each of them is called once for each id of the answer,
in the answer's order, whether the id was drafted or not: so they may keep a state, and answers do not depend
on speculation.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from phirt.errors import BundleError, ConfigError, PhirtError

Logits = npt.NDArray[np.float32]
LogitsProcessor = Callable[[Logits, Sequence[int]], Logits]
Sampler = Callable[[Logits], int]

_FIRST_CANDIDATES = (
    256  # top-p looks at this many best logits first, and at eight times more while they do not suffice
)
_MAX_STOP_STRINGS = 64
_MAX_STOP_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings of one answer. Raises ConfigError where a value is out of range.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off; `repetition_penalty` 1 is off. With
    a `seed` the same request gives the same answer. Generation ends before any of the `stop` strings, which
    do not appear in the text. `speculation` lets the engine run ids that it expects before they are chosen:
    without, the answer is the same up to rounding, and slower where it repeats itself or its prompt.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    speculation: bool = True

    def __post_init__(self) -> None:
        _require_integer("max_new_tokens", self.max_new_tokens, 1)
        _require_integer("top_k", self.top_k, 0)
        _require_number("temperature", self.temperature, 0.0, 1000.0)
        _require_number("top_p", self.top_p, 0.0, 1.0, low_included=False)
        _require_number("min_p", self.min_p, 0.0, 1.0)
        _require_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.seed is not None:
            _require_integer("seed", self.seed, 0)
        if not isinstance(self.speculation, bool):
            raise ConfigError(f"speculation is {self.speculation!r}, accepted: True or False")
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def greedy(self) -> bool:
        """Whether the best id is always taken."""
        return self.temperature == 0.0


class GenerationOverrides(TypedDict, total=False):
    """The settings of `GenerationConfig` as keyword arguments, each optional."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Iterable[str]
    speculation: bool


def overridden(
    config: object, overrides: Mapping[str, Any], defaults: GenerationConfig | None = None
) -> GenerationConfig:
    """`config`, or `defaults` where it is None, with some settings replaced. Raises
    ConfigError for what is none, and for unknown settings.
    """
    if config is None:
        config = defaults or GenerationConfig()
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config is a {type(config).__name__}, accepted: a GenerationConfig")
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in overrides:
        if name not in names:
            raise ConfigError(f"there is no setting {name!r}, accepted: {', '.join(names)}")
    return dataclasses.replace(config, **overrides) if overrides else config


def _stop_strings(stop: object) -> tuple[str, ...]:
    accepted = f"accepted: a string of 1 to {_MAX_STOP_LENGTH} characters, or a list of such strings"
    if isinstance(stop, bytes | Mapping) or not isinstance(stop, Iterable):
        raise ConfigError(f"stop is {stop!r}, {accepted}; an empty list for none")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(item, str) and 0 < len(item) <= _MAX_STOP_LENGTH for item in strings):
        raise ConfigError(f"stop is {stop!r}, {accepted}")
    if len(strings) > _MAX_STOP_STRINGS:
        raise ConfigError(f"stop has {len(strings)} strings, accepted: at most {_MAX_STOP_STRINGS}")
    return strings


def _require_integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}, accepted: a whole number of at least {low}")


def _require_number(name: str, value: object, low: float, high: float, *, low_included: bool = True) -> None:
    accepted = f"a number {'from' if low_included else 'above'} {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}, accepted: {accepted}")
    if not low <= value <= high or (value == low and not low_included):
        raise ConfigError(f"{name} is {value!r}, accepted: {accepted}")


def suppress(ids: Sequence[int]) -> LogitsProcessor:
    """Never lets any of `ids` be chosen: media placeholders have no meaning in an answer."""
    banned = np.array(sorted(ids), dtype=np.int64)

    def process(logits: Logits, _: Sequence[int]) -> Logits:
        logits[banned] = -np.inf
        return logits

    return process


class RepetitionPenalty:
    """Divides positive logits of ids that have occurred by `penalty` and multiplies negative ones (CTRL,
    arXiv 1909.05858).
    """

    def __init__(self, penalty: float, vocab_size: int) -> None:
        self._penalty = penalty
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._counted = 0

    def __call__(self, logits: Logits, ids: Sequence[int]) -> Logits:
        self._seen[np.asarray(ids[self._counted :], dtype=np.int64)] = True
        self._counted = len(ids)
        seen = logits[self._seen]
        logits[self._seen] = np.where(seen > 0, seen / self._penalty, seen * self._penalty)
        return logits


def temperature(value: float) -> LogitsProcessor:
    """Divides logits by `value`: above 1 flattens, below 1 sharpens."""
    # Shifted so that the best is 0: a tiny temperature then underflows the others instead of overflowing all.
    return lambda logits, _: (logits - logits.max()) / np.float32(max(value, 1e-6))


def top_k(count: int) -> LogitsProcessor:
    """Keeps the `count` best logits; exactly that many, whatever ties there are."""

    def process(logits: Logits, _: Sequence[int]) -> Logits:
        return logits if count >= len(logits) else _keep(logits, np.argpartition(-logits, count - 1)[:count])

    return process


def top_p(mass: float) -> LogitsProcessor:
    """Keeps the smallest set of best ids whose probability reaches `mass` (nucleus, arXiv 1904.09751); at
    least one.
    """

    def process(logits: Logits, _: Sequence[int]) -> Logits:
        weights = np.exp(logits.astype(np.float64) - logits.max())
        wanted = mass * weights.sum()
        count = min(_FIRST_CANDIDATES, len(logits))
        while True:
            best = (
                np.arange(len(logits))
                if count == len(logits)
                else np.argpartition(-weights, count - 1)[:count]
            )
            best = best[np.argsort(-weights[best], kind="stable")]
            reached = np.cumsum(weights[best])
            if reached[-1] >= wanted or count == len(logits):
                return _keep(logits, best[: int(np.searchsorted(reached, wanted)) + 1])
            count = min(count * 8, len(logits))

    return process


def min_p(share: float) -> LogitsProcessor:
    """Keeps ids whose probability is at least `share` of the best one's."""

    def process(logits: Logits, _: Sequence[int]) -> Logits:
        logits[logits < logits.max() + np.float32(math.log(share))] = -np.inf
        return logits

    return process


def _keep(logits: Logits, ids: npt.NDArray[np.int64]) -> Logits:
    kept = np.full_like(logits, -np.inf)
    kept[ids] = logits[ids]
    return kept


def make_logits_processors(
    config: GenerationConfig, vocab_size: int, suppressed: Sequence[int] = ()
) -> list[LogitsProcessor]:
    """The processors that `config` asks for, in the order in which they apply."""
    processors: list[LogitsProcessor] = []
    if suppressed:
        processors.append(suppress(suppressed))
    if config.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(config.repetition_penalty, vocab_size))
    if config.greedy:
        return processors
    processors.append(temperature(config.temperature))
    if config.top_k:
        processors.append(top_k(config.top_k))
    if config.top_p < 1.0:
        processors.append(top_p(config.top_p))
    if config.min_p > 0.0:
        processors.append(min_p(config.min_p))
    return processors


def greedy(logits: Logits) -> int:
    """The best id; the lowest one of equals."""
    return int(np.argmax(logits))


def categorical(seed: int | None) -> Sampler:
    """Draws an id with the probability that softmax gives it, from a generator of its own."""
    generator = np.random.default_rng(seed)

    def sample(logits: Logits) -> int:
        candidates = np.flatnonzero(logits > -np.inf)
        chosen = logits[candidates].astype(np.float64)
        reached = np.cumsum(np.exp(chosen - chosen.max()))
        index = np.searchsorted(reached, generator.random() * reached[-1], side="right")
        return int(candidates[min(int(index), len(candidates) - 1)])

    return sample


class TokenSampler:
    """Processors and sampler in one: called with logits [vocab], returns the next id and remembers it.

    `logits_processors` and `sampler` are a request's own; see above for their place in the order. Raises
    ConfigError where one of them returns what cannot be used, BundleError where the model's logits are no
    numbers.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        prompt_ids: Sequence[int],
        suppressed: Sequence[int] = (),
        *,
        logits_processors: Sequence[LogitsProcessor] = (),
        sampler: Sampler | None = None,
    ) -> None:
        self._own_processors = tuple(logits_processors)
        self._processors = make_logits_processors(config, vocab_size, suppressed)
        self._own_sampler = sampler
        self._sampler = greedy if config.greedy else categorical(config.seed)
        self._ids = list(prompt_ids)

    def __call__(self, logits: Logits) -> int:
        work = logits.copy()  # the engine's buffer stays as the graph wrote it
        for process in self._own_processors:
            work = self._checked_logits(process(work, self._ids), len(logits))
        with np.errstate(
            all="ignore"
        ):  # the host's setting must not turn a vanishing probability into an error
            for process in self._processors:
                work = process(work, self._ids)
            best = work.max()  # of which NaN is the greatest
            if not np.isfinite(best):
                raise self._unusable(best)
            token = self._sampler(work) if self._own_sampler is None else -1
        if self._own_sampler is not None:
            token = self._checked_token(self._own_sampler(work), work)
        self._ids.append(token)
        return token

    def _checked_logits(self, returned: object, vocab_size: int) -> Logits:
        """What one of the request's processors returned, as float32 [vocab]."""
        try:
            logits = np.asarray(returned, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"a logits processor returned a {type(returned).__name__}, accepted: float32 logits "
                f"[{vocab_size}]"
            ) from error
        if logits.shape != (vocab_size,):
            raise ConfigError(
                f"a logits processor returned an array of shape {list(logits.shape)}, accepted: float32 "
                f"logits [{vocab_size}]"
            )
        return logits

    def _checked_token(self, returned: Any, logits: Logits) -> int:
        """What the request's sampler returned, as an id."""
        vocab_size = len(logits)
        accepted = f"an id from 0 to {vocab_size - 1} whose logit is not -inf"
        try:
            token = operator.index(returned)
        except TypeError as error:
            found = type(returned).__name__
            raise ConfigError(f"the sampler returned a {found}, accepted: {accepted}") from error
        if not 0 <= token < vocab_size or logits[token] == -np.inf:
            raise ConfigError(f"the sampler returned {token}, accepted: {accepted}")
        return token

    def _unusable(self, best: float) -> PhirtError:
        if self._own_processors:
            found = "no numbers" if np.isnan(best) else "infinite" if best > 0 else "-inf for every id"
            return ConfigError(
                f"the logits are {found} after the request's logits processors; leave at least one id with a "
                "finite logit"
            )
        return BundleError(
            "the model's scores are no numbers; run 'phirt verify', or start a new conversation"
        )


def require_callables(processors: object, sampler: object) -> tuple[LogitsProcessor, ...]:
    """The request's own processors as a tuple. Raises ConfigError for what cannot be called."""
    if callable(processors) or not isinstance(processors, Iterable):
        raise ConfigError(
            f"logits_processors is a {type(processors).__name__}, accepted: a list of callables, even for one"
        )
    listed = tuple(processors)
    for process in listed:
        if not callable(process):
            raise ConfigError(f"a logits processor is a {type(process).__name__}, accepted: a callable")
    if sampler is not None and not callable(sampler):
        raise ConfigError(f"sampler is a {type(sampler).__name__}, accepted: a callable or None")
    return listed
