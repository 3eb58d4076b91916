"""What a stage did to the model, for the report of a run: what it trained, and what stayed as it was, bit by
bit.

Knows weights by name and their digests. Knows nothing of steps or of how a report looks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json, read_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_export.reference import ModelConfig
from phirt_train.components import by_component, component_of
from phirt_train.sharding import whole
from phirt_train.stage import StageConfig

RECORD_NAME = "record.json"


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One stage.

    Attributes:
        trained, frozen: weights by component.
        moved: by component, how many of the trained tensors changed, and how many there are.
        frozen_before, frozen_after: a digest of all other tensors, before the stage and after it.
        changed_frozen: those of them that are not as they were.
        techniques: how it was trained, in words of the field.
        context, theta: of its positions.
        device: what computed.
    """

    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    moved: Mapping[str, tuple[int, int]]
    frozen_before: str
    frozen_after: str
    changed_frozen: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    context: int = 0
    theta: float = 0.0
    device: str = "cpu"


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """A digest of each tensor of a model by its name."""
    return {name: _digest(tensor) for name, tensor in model.state_dict().items()}


def _digest(tensor: Tensor) -> str:
    gathered = whole(tensor)  # of what is dealt out among processes
    raw = gathered.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().data, digest_size=16).hexdigest()


def record_stage(
    stage: StageConfig,
    sizes: Mapping[str, int],
    trained: Iterable[str],
    before: Mapping[str, str],
    after: Mapping[str, str],
    model: ModelConfig,
    device: torch.device,
) -> StageRecord:
    """What a stage did.

    Args:
        sizes: weights of each parameter of the model.
        trained: names of the tensors that it may change, running statistics among them.
        before, after: digests of all tensors.
        model, device: as the stage has them.
    """
    may_change = set(trained)
    others = sorted(set(before) - may_change)
    moved: dict[str, tuple[int, int]] = {}
    for name in sorted(may_change & set(sizes)):
        part = component_of(name)
        count, of = moved.get(part, (0, 0))
        moved[part] = (count + (before[name] != after[name]), of + 1)
    return StageRecord(
        trained=by_component(sizes, [name for name in sizes if name in may_change]),
        frozen=by_component(sizes, [name for name in sizes if name not in may_change]),
        moved=moved,
        frozen_before=_joined(before, others),
        frozen_after=_joined(after, others),
        changed_frozen=tuple(name for name in others if before[name] != after[name]),
        techniques=techniques_of(stage),
        context=model.decoder.rope.context,
        theta=model.decoder.rope.theta,
        device=device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
    )


def _joined(digests: Mapping[str, str], names: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in names).encode()).hexdigest()


def techniques_of(stage: StageConfig) -> tuple[str, ...]:
    """What of the field's techniques a stage uses."""
    schedule, data = stage.schedule, stage.data
    kind = "resumed" if schedule.resumes else schedule.kind
    used = {
        "Muon": schedule.muon,
        "AdamW": not schedule.muon,
        f"{kind} schedule": True,
        "re-warm-up": schedule.continues is not None and not schedule.resumes,
        "averaged weights (EMA)": stage.ema > 0,
        "int4 quantization-aware": stage.quantize_aware > 0,
        "LoRA": any("lora_" in pattern for pattern in stage.trains),
        "rates by part": bool(stage.rates),
        "gradient accumulation": stage.micro_batch is not None and stage.micro_batch < stage.batch,
        "activation checkpointing": stage.checkpoint_activations,
        "torch.compile": stage.compile,
        "packed rows": hasattr(data, "row_tokens"),
        "mixup": getattr(data, "mixup", 0) > 0,
        "rotary embedding changed": stage.rope is not None,
    }
    return tuple(name for name, is_used in used.items() if is_used)


def write_record(record: StageRecord, folder: Path) -> None:
    """Keep it beside the stage's weights."""
    write_text(folder / RECORD_NAME, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def read_record(folder: Path) -> StageRecord | None:
    """What was kept; None of a stage that was done before records were.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    remedy = "delete that file; the report leaves the stage's part out"
    document = parse_json(path.read_bytes(), str(path), ConfigError, remedy)
    return read_dataclass(StageRecord, Fields(document, str(path), ConfigError, remedy))
