"""The processes that train together: one alone, or those that torchrun has started.

Knows ranks, sums and turns. Knows nothing of models. Every process runs the same code on its own share of
each step; the first alone writes files and reports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from phirt.errors import ConfigError

_PATIENCE = datetime.timedelta(days=7)  # one process may prepare data for hours while the others wait
_REMEDY = "start all of them with torchrun"
_BUCKET = 1 << 24  # elements that are summed in one message


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number.
        count: how many there are.
        local: its number on its own machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(f"cuda:{self.local}" if torch.cuda.is_available() else "cpu")

    def wait(self) -> None:
        """Go on once all processes are here."""
        if self.count > 1:
            self.sum([0.0])

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process do the block alone, and then all others, which find its files."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of each value over all processes."""
        if self.count == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return [float(number) for number in numbers]

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.count == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def share(self, value: Any) -> Any:
        """The first process' value, in all of them: whatever JSON can say."""
        if self.count == 1:
            return value
        content = json.dumps(value if self.is_first else None).encode()
        (size,) = self.sum([float(len(content)) if self.is_first else 0.0])
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return json.loads(buffer.numpy().tobytes())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum each gradient over all processes; one that is missing in some counts as zero there."""
        if self.count == 1:
            return
        there = self.sum([float(parameter.grad is not None) for parameter in parameters])
        wanted = [p for p, number in zip(parameters, there, strict=True) if number]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for some in _buckets(wanted):
            gradients = [parameter.grad for parameter in some if parameter.grad is not None]
            joined = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(joined)
            parts = joined.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type side by side, so many that a message is worth while."""
    some: list[nn.Parameter] = []
    for parameter in parameters:
        size = sum(one.numel() for one in some)
        if some and (size + parameter.numel() > _BUCKET or some[0].dtype != parameter.dtype):
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


ALONE = Processes()


def join_processes() -> Processes:
    """This process among those that torchrun has started; one alone where it has not.

    Raises:
        ConfigError: they do not find each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or not (count := int(size)):
        raise ConfigError(f"WORLD_SIZE is {size!r}, accepted: a number of processes; {_REMEDY}")
    if count == 1:
        return ALONE
    if not (given := os.environ.get("RANK", "")).isdigit():
        raise ConfigError(f"WORLD_SIZE is {count}, and RANK is {given!r}, no number; {_REMEDY}")
    found = Processes(int(given), count, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        if found.device.type == "cuda":
            torch.cuda.set_device(found.device)
        backend = "cpu:gloo,cuda:nccl" if found.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"process {found.rank} of {count} did not find the others: {' '.join(str(error).split())}; "
                f"{_REMEDY}"
            ) from error
    return found


def check_started() -> None:
    """Refuses what takes processes that know of each other, one of them alone too.

    Raises:
        ConfigError: torchrun has not started this one.
    """
    missing = [
        name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ConfigError(
            f"--sharding fsdp deals out weights among processes, and {', '.join(missing)} are not set; "
            f"{_REMEDY}, or train with --sharding none"
        )


def leave_processes() -> None:
    """Part from the others, where this process has joined any: threads that talk to them end."""
    if dist.is_initialized():
        dist.destroy_process_group()
