"""The trained model in float16, as a GPU computes it, by the CPU's kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nano_variants import variant_of

from phirt.bundle.lora import DECODER
from phirt.generate.engine import Engine
from phirt.runtime import plugins
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig


def engine_of(bundle: Path, target: str, config: SessionConfig | None = None) -> Engine:
    view = variant_of(bundle, target)
    return Engine(Session(view, DECODER, config or SessionConfig()), view)


@pytest.mark.parametrize("target", ["cuda", "directml", "webgpu"])
def test_logits_and_answers_are_those_of_float32(for_gpus: Path, held_out, target: str) -> None:
    """Within 1e-2 of the greatest logit, and at least 98 % of the ids, teacher-forced; against the same
    weights in float32, which are the CPU's without its rounded inputs.
    """
    half, whole = engine_of(for_gpus, target), engine_of(for_gpus, "webgpu_float32")
    agreed = total = 0
    for one in held_out:
        prompt, first = one.forced(), len(one.prompt.ids) - 1
        found = np.stack([row.copy() for row in half.score_prompt(prompt, first)])
        expected = np.stack([row.copy() for row in whole.score_prompt(prompt, first)])
        assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
        agreed += int((found.argmax(-1) == expected.argmax(-1)).sum())
        total += len(expected)
    assert agreed >= 0.98 * total


def test_it_says_what_the_cpu_says(for_gpus: Path, held_out) -> None:
    counts = [one.agreement(engine_of(for_gpus, "webgpu")) for one in held_out]
    assert sum(right for right, _ in counts) >= 0.98 * sum(all_ for _, all_ in counts)


@pytest.mark.skipif(
    "WebGpuExecutionProvider" not in plugins.built_in(),
    reason="no onnxruntime with WebGPU built in: pip install onnxruntime-webgpu in its own environment, and "
    "name a Vulkan driver by VK_ICD_FILENAMES where there is no GPU, such as Chromium's SwiftShader",
)
def test_webgpu_itself_decodes_as_the_cpu_does(for_gpus: Path) -> None:
    """In float32, since software adapters have no float16. The layers are on the adapter; of what is left to
    the CPU, nothing has to do with weights. Prefills of many rows are wrong on SwiftShader (onnxruntime
    1.27).
    """
    view = variant_of(for_gpus, "webgpu_float32")
    session = Session(view, DECODER, SessionConfig(Device.named("webgpu")))
    found, expected = Engine(session, view), engine_of(for_gpus, "webgpu_float32")
    for step, ids in enumerate(([10, 11, 12, 13], [14], [15], [16])):
        rows = [
            engine.prefill(ids) if not step else engine.decode_step(ids[0]) for engine in (found, expected)
        ]
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)
    left = session.placement.kinds_on("CPUExecutionProvider")
    assert not {"MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization"} & set(left)
