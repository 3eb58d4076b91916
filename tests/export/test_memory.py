"""Memory of an export: a few slabs, whatever the checkpoint's size. Pages of its files are given back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_models import NO_TOKENS, config

from phirt_export.checkpoint import expected_shapes
from phirt_export.exporter import export_bundle

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(field: str) -> int:
    """A size of this process in bytes: VmRSS now, VmHWM at its highest."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def write_large(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A bfloat16 checkpoint of random weights; returns its size in bytes."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    # Random mantissas under the exponents of numbers between 0.5 and 2.
    block = np.random.default_rng(0).integers(0x3F00, 0x4000, 1 << 20, dtype=np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(block)):
            file.write(block[: min(len(block), offset - start)])
    return offset


@pytest.mark.skipif(not RESET.exists(), reason="the system does not tell the peak of a running process")
def test_resident_memory_does_not_follow_the_checkpoint(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 1 << 16, "num_layers": 2}
    decoder = dataclasses.replace(config().decoder, **sizes)
    model_config = dataclasses.replace(config(adapters=()), decoder=decoder, vision=None, audio=None)
    size = write_large(tmp_path, expected_shapes(model_config))
    assert size > 170 << 20
    (tmp_path / "config.json").write_text(model_config.to_json())
    (tmp_path / "tokenizer.json").write_text(NO_TOKENS)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    RESET.write_text("5")
    before = memory("VmRSS")
    bundle = export_bundle(tmp_path, tmp_path / "bundle", bits=4, method="rtn")
    grown = memory("VmHWM") - before
    assert (bundle / "decoder.data").stat().st_size > size // 4
    # The table alone is 256 MiB in float32, and the mapped file is as large as `size`.
    assert grown < 160 << 20, f"{grown >> 20} MiB"
