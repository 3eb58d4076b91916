"""NVIDIA's GPUs by onnxruntime's CUDA provider: float16, keys and values in the GPU's memory.

It takes a GPU and the build of onnxruntime for it, in an environment of its own:

    pip install -e ".[dev,cuda]" && pip uninstall -y onnxruntime
    pip install --force-reinstall --no-deps onnxruntime-gpu && pytest tests/targets/test_cuda.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nano_variants import EXAMPLES, variant_of

import phirt
from phirt.errors import PhirtError
from phirt.generate.engine import Engine
from phirt.generator import Generator
from phirt.runtime import plugins
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig

CUDA = "CUDAExecutionProvider"


pytestmark = pytest.mark.skipif(
    CUDA not in plugins.built_in(),
    reason="no onnxruntime for CUDA: pip install onnxruntime-gpu on a machine with a GPU",
)


@pytest.fixture(scope="module")
def on_gpu(for_gpus: Path):
    generator = Generator(variant_of(for_gpus, "cuda"), SessionConfig(Device.named("cuda")))
    yield generator
    generator.close()


def test_logits_and_answers_are_those_of_float32(on_gpu, for_gpus: Path, held_out) -> None:
    """Within 1e-2 of the greatest logit of the CPU's, and at least 98 % of the ids, teacher-forced."""
    view = variant_of(for_gpus, "webgpu_float32")
    whole, half = Engine(Session(view, "decoder", SessionConfig()), view), on_gpu.new_engine()
    agreed = total = 0
    worst = 0.0
    for one in held_out:
        prompt, first = one.forced(), len(one.prompt.ids) - 1
        found = np.stack([row.copy() for row in half.score_prompt(prompt, first)])
        expected = np.stack([row.copy() for row in whole.score_prompt(prompt, first)])
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
        agreed += int((found.argmax(-1) == expected.argmax(-1)).sum())
        total += len(expected)
    print(f"{agreed} of {total} ids; logits differ by {worst:.5f} of the greatest")
    assert worst <= 1e-2 and agreed >= 0.98 * total


def test_it_says_what_the_cpu_says(on_gpu, held_out) -> None:
    counts = [one.agreement(on_gpu.new_engine()) for one in held_out]
    print(sum(right for right, _ in counts), "of", sum(all_ for _, all_ in counts))
    assert sum(right for right, _ in counts) >= 0.98 * sum(all_ for _, all_ in counts)


def test_steps_go_on_in_the_gpus_memory(on_gpu, for_gpus: Path) -> None:
    """A prefill and decode steps on a cache that stays there give what one pass over all of it gives."""
    ids = list(range(20, 60))
    engine = on_gpu.new_engine()
    rows = [engine.prefill(ids[:30]).copy(), *(engine.decode_step(i).copy() for i in ids[30:])]
    whole = on_gpu.new_engine().prefill(ids).copy()
    np.testing.assert_allclose(rows[-1], whole, atol=1e-2 * np.abs(whole).max())


def test_encoders_give_the_cpus_features(on_gpu, held_out) -> None:
    for kind, name in (("image", "shapes.png"), ("audio", "seven.flac")):
        rule = next(rule for rule in on_gpu.manifest.rules if kind in rule.modalities)
        features = on_gpu.encoder.features(on_gpu.encoder.prepare(kind, EXAMPLES / name), rule)
        known = next(one for one in held_out if one.prompt.adapter.name == rule.adapter).prompt.spans[0]
        assert np.corrcoef(features.reshape(-1), known.features.reshape(-1))[0, 1] > 0.998


def test_nothing_that_has_weights_is_left_to_the_cpu(on_gpu, held_out) -> None:
    on_gpu.new_engine().prefill([20, 21])
    for name, placement in on_gpu.placements.items():
        left = placement.kinds_on("CPUExecutionProvider")
        print(name, placement.counts, left)
        assert not {"MatMulNBits", "GroupQueryAttention", "MatMul", "Conv", "MultiHeadAttention"} & set(left)


def test_a_chat_about_a_picture(for_gpus: Path, nano) -> None:
    with phirt.load(for_gpus, providers="cuda") as model:
        settings = {"max_new_tokens": 24, "temperature": 0.0}
        asked = "How many shapes are there?"
        picture = [EXAMPLES / "shapes.png"]
        said = model.chat().send(asked, images=picture, **settings).text()
        assert said == nano.chat().send(asked, images=picture, **settings).text()


def test_a_device_that_is_not_there_is_one_line(for_gpus: Path) -> None:
    with pytest.raises(PhirtError, match="CUDAExecutionProvider") as caught:
        phirt.load(for_gpus, providers=[("cuda", {"device_id": "97"})]).chat().send("Hello").text()
    assert "\n" not in str(caught.value)
