"""From a checkpoint or a bundle to a package for a phone: `export_package`.

Knows the order of work: what cannot fit is refused first, then a bundle is made where there is none yet, then
the package from it. An export that is interrupted goes on with the bundle, which lies beside the output until
the package is complete.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phirt.bundle.lora import DECODER
from phirt.bundle.manifest import CPU_TARGET, MANIFEST_NAME
from phirt.errors import ConfigError
from phirt_export.bundle import geometry
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.exporter import export_bundle
from phirt_export.graphs.weight_format import FLOAT_BITS
from phirt_export.mobile.memory import MemoryPlan, parse_memory, plan_memory
from phirt_export.mobile.package import Say, write_package
from phirt_export.mobile.profile import MobileProfile
from phirt_export.mobile.profiles import known_profiles, read_profile
from phirt_export.optimum_graphs.checkpoint import is_for_optimum
from phirt_export.staging import require_replaceable
from phirt_export.variants.adding import refuse_settings

_TOWERS = "model.embed_tokens_extend."
# Settings of an export that say what a bundle's weights are.
_OF_WEIGHTS = (
    "bits", "block_size", "embedding_bits", "adapter_bits", "encoder_bits", "method", "bits_per_weight", "kv",
    "limits", "name", "base",
)  # fmt: skip
_SCALE_BITS = 0.5  # a scale of 16 bits for 32 weights


def is_for_package(targets: Sequence[str], device_memory: str | None) -> bool:
    """Whether these targets ask for a package. Raises ConfigError for a package among other targets, and for
    a device's memory where there is none.
    """
    packages = [target for target in targets if target in known_profiles()]
    if packages and len(targets) > 1:
        raise ConfigError(
            f"--target {packages[0]} makes a package of its own; give it alone, and export other targets to "
            "another folder"
        )
    if device_memory is not None and not packages:
        raise ConfigError(f"--device-memory is for packages, --target {' or '.join(known_profiles())}")
    return bool(packages)


def export_package(
    checkpoint: Path, output: Path, target: str, device_memory: str | None, say: Say, **settings: Any
) -> MemoryPlan:
    """Writes a checkpoint, or a bundle, as a package for `target`; returns its memory plan.

    Args:
        checkpoint: as `export_bundle` takes it, or the folder of a bundle with graphs for the CPU.
        output: the package's folder; a bundle that is there is replaced once the package is complete.
        target: a name of `phirt_export.mobile.profiles`.
        device_memory: of the device, such as "6GB"; None for any.
        say: told each step.
        settings: those of `export_bundle`, for a checkpoint.

    Raises:
        ConfigError: what `export_bundle` refuses; a model that does not fit the device, or that no app can
        run.
        BundleError: the bundle is damaged, or the output cannot be written.
    """
    profile = read_profile(target)
    device = None if device_memory is None else parse_memory(device_memory)
    require_replaceable(output)
    if (checkpoint / MANIFEST_NAME).is_file():
        calibration = settings.get("calibration") or None
        refuse_settings({name: settings.get(name) for name in _OF_WEIGHTS} | {"calibration": calibration})
        return write_package(checkpoint, output, profile, device, say)
    is_limited = device is not None or profile.memory_limit is not None
    if is_limited and not is_for_optimum(checkpoint):
        _require_room(checkpoint, device, profile, settings)
    bundle = output.absolute().with_name(f".{output.name}.cpu")
    export_bundle(checkpoint, bundle, targets=[CPU_TARGET], **settings)
    plan = write_package(bundle, output, profile, device, say)
    shutil.rmtree(bundle)
    return plan


def _require_room(
    checkpoint: Path, device: int | None, profile: MobileProfile, settings: dict[str, Any]
) -> None:
    """Raises ConfigError where the checkpoint cannot fit the device, or what a program can have, in as many
    bits as are asked for.
    """
    opened = Checkpoint(checkpoint, settings.get("base"))
    weights: dict[str, int] = {
        plan.name: sum(map(math.prod, plan.shapes.values())) for plan in opened.encoders
    }
    for name, shape in expected_shapes(opened.config).items():
        part = name.split(".")[2] if name.startswith(_TOWERS) else DECODER
        weights[part] = weights.get(part, 0) + math.prod(shape)
    decoder = weights.pop(DECODER)
    plan_memory(
        geometry(opened.config),
        1 if settings.get("kv") == "int8" else 4,
        _bytes(decoder, settings.get("bits") or 4),
        sum(_bytes(count, settings.get("encoder_bits") or 8) for count in weights.values()),
        device,
        profile.memory_share,
        profile.memory_limit,
    )


def _bytes(weights: int, bits: int) -> int:
    """Of so many weights, with the share that each has of a scale."""
    return int(weights * (bits if bits == FLOAT_BITS else bits + _SCALE_BITS) / 8)
