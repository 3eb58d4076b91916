"""Whether a model fits a device, and how long its conversations can be there.

Knows sizes: of weights, of keys and values, of what onnxruntime keeps beside them. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import re

from phirt.bundle.manifest import Geometry
from phirt.errors import ConfigError

_GB = 1 << 30
_BASE = 64 << 20  # onnxruntime's code, the tokenizer, the app's own
# onnxruntime lays weights out anew for the device's kernels and keeps the file mapped beside them. So mini's
# golden conversations, of at most 256 tokens, take 332 MB, where 337 are planned; nano's 74, where 144 are.
_COPIES = 2.0
_ACTIVATIONS = 48 << 20  # what onnxruntime keeps of a chunk of a prompt, a picture or a recording
_LEAST_CONTEXT = 1024  # what a question about a picture and its answer need
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)", re.IGNORECASE)


def parse_memory(text: str) -> int:
    """Bytes of a size such as "6GB", as device makers count them. Raises ConfigError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--device-memory is {text!r:.40}, accepted: a size such as 6GB or 512MB")
    size = int(float(found[1]) * (_GB if found[2].upper().startswith("G") else 1 << 20))
    if not 256 << 20 <= size <= 1024 * _GB:
        raise ConfigError(f"--device-memory is {text!r:.40}, accepted: 256MB to 1024GB")
    return size


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a conversation takes on a device, in bytes, and how long it may be.

    Attributes:
        device: memory of the device; None where none was named.
        available: what an app can rely on there.
        weights: the decoder with its copies.
        encoders: all of them with their copies; an app can give their memory back between uses.
        per_token: keys and values of one position.
        context: positions of the longest conversation.
    """

    device: int | None
    available: int | None
    weights: int
    encoders: int
    per_token: int
    context: int

    @property
    def total(self) -> int:
        """All that the longest conversation takes."""
        return _BASE + _ACTIVATIONS + self.weights + self.encoders + self.per_token * self.context


def plan_memory(
    geometry: Geometry,
    cache_itemsize: int,
    decoder_bytes: int,
    encoder_bytes: int,
    device: int | None,
    share: float,
    limit: int | None = None,
) -> MemoryPlan:
    """The plan for a decoder and encoders of these bytes on a device, of which an app can have `share`, and
    `limit` at most.

    Raises:
        ConfigError: it does not fit, not even with a short context.
    """
    per_token = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * cache_itemsize
    available = limit if device is None else min(int(device * share), limit or device)
    plan = MemoryPlan(
        device,
        available,
        int(_COPIES * decoder_bytes),
        int(_COPIES * encoder_bytes),
        per_token,
        geometry.context,
    )
    if available is None:
        return plan
    left = available - dataclasses.replace(plan, context=0).total
    context = min(geometry.context, left // per_token)
    least = min(_LEAST_CONTEXT, geometry.context)
    if context < least:
        needed = dataclasses.replace(plan, context=least).total
        fewer = "export fewer bits (--bits 4, --encoder-bits 4) or --kv int8"
        on = "a program of this target" if device is None else f"an app on a device with {_shown(device)}"
        larger = (
            f", or for a device with {_shown(int(needed / share))}" if needed <= (limit or needed) else ""
        )
        raise ConfigError(
            f"the model needs {_shown(needed)} for a conversation of {least} tokens, and {on} can rely on "
            f"{_shown(available)}; {fewer}{larger}"
        )
    if 2000 <= context < geometry.context:
        context = context // 1000 * 1000  # an estimate is not to look exact
    return dataclasses.replace(plan, context=context)


def _shown(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB // 10 else f"{size / (1 << 20):.0f} MB"
