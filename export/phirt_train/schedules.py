"""Learning rate over the steps: warm-up and decay, over one stage or a chain of them.

Knows schedules and which stage continues which. Knows nothing of optimisers or weights. A stage whose
schedule `continues` another's goes on at the position that was reached there, as if both were one stage; with
a `peak` of its own it warms up again, from the rate that the chain stood at (Ibrahim et al., arXiv
2403.08763).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from phirt.errors import ConfigError
from phirt_train.stage import Decay, Schedule, StageConfig


@dataclasses.dataclass(frozen=True)
class Course:
    """Where a stage lies in a schedule, which may span several stages.

    Attributes:
        schedule: that of the stage where it begins.
        offset: its steps before the stage.
        steps: its steps over all stages.
        start: the rate that it warms up from.
    """

    schedule: Schedule
    offset: int
    steps: int
    start: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate at a step of the stage."""
        schedule, position = self.schedule, self.offset + step
        assert schedule.peak is not None
        if position < schedule.warmup_steps:
            return self.start + (schedule.peak - self.start) * (position + 1) / schedule.warmup_steps
        begin, shape = schedule.warmup_steps, schedule.decay
        if schedule.kind == "wsd":
            begin = max(begin, self.steps - max(1, round(schedule.decay_share * self.steps)))
        else:
            shape = schedule.kind
        progress = min(1.0, max(0.0, (position - begin) / max(1, self.steps - begin)))
        low = schedule.final_ratio
        return schedule.peak * (low + (1 - low) * _remaining(shape, progress))


def _remaining(shape: Decay, progress: float) -> float:
    """What is left of 1 when a share of the decay has passed."""
    if shape == "linear":
        return 1 - progress
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - math.sqrt(progress)  # Hägele et al., arXiv 2405.18392


def lone_course(stage: StageConfig) -> Course:
    """Of a stage whose schedule is its own alone."""
    return Course(stage.schedule, 0, stage.steps)


def course_of(stages: Sequence[StageConfig], name: str) -> Course:
    """Where the stage `name` lies in its schedule."""
    by_name = {stage.name: stage for stage in stages}
    first, offset = by_name[name], 0
    while first.schedule.resumes:
        assert first.schedule.continues is not None
        first = by_name[first.schedule.continues]
        offset += first.steps
    start = 0.0
    if first.schedule.continues is not None:
        before = by_name[first.schedule.continues]
        start = course_of(stages, before.name).rate(before.steps - 1)
    return Course(first.schedule, offset, sum(one.steps for one in _chain(stages, first)), start)


def _chain(stages: Sequence[StageConfig], first: StageConfig) -> list[StageConfig]:
    """The stages that share the schedule that begins with `first`."""
    chain = [first]
    for stage in stages:
        if stage.schedule.resumes and stage.schedule.continues == chain[-1].name:
            chain.append(stage)
    return chain


def is_continued(stages: Sequence[StageConfig], name: str) -> bool:
    """Whether a later stage takes over the moments of this one."""
    return any(stage.schedule.continues == name for stage in stages)


def check_warmups(stages: Sequence[StageConfig]) -> None:
    """Raises ConfigError where a rate rises for longer than its schedule lasts, and misses its peak."""
    for stage in stages:
        warmup = stage.schedule.warmup_steps
        if stage.schedule.resumes or warmup <= (course := course_of(stages, stage.name)).steps:
            continue
        chain = [one.name for one in _chain(stages, stage)]
        where = f"stages {' and '.join(chain)} have" if len(chain) > 1 else "it has"
        raise ConfigError(
            f"stage {stage.name} warms up for {warmup} steps, and {where} {course.steps}, so that the peak "
            f"is never reached; give schedule.warmup_steps of {course.steps} at most, or more steps"
        )


def check_chains(stages: Sequence[StageConfig]) -> None:
    """Raises ConfigError where a schedule continues one that it cannot."""
    resumed: dict[str, str] = {}
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        before = stage.schedule.continues
        if before is None:
            continue
        if before not in stage.starts_from:
            raise ConfigError(
                f"the schedule of stage {stage.name} continues {before!r}, which the stage does not start "
                f"from; accepted: {', '.join(stage.starts_from) or 'nothing, as it starts from no stage'}"
            )
        if by_name[before].schedule.muon != stage.schedule.muon:
            raise ConfigError(
                f"stages {before} and {stage.name} share their moments, and one of them has muon, the other "
                "has not; give both the same"
            )
        if stage.schedule.resumes and before in resumed:
            raise ConfigError(
                f"the schedules of stages {resumed[before]} and {stage.name} both continue that of {before}, "
                "which can go on in one only; give one of them a peak, so that it warms up again"
            )
        if stage.schedule.resumes:
            resumed[before] = stage.name
