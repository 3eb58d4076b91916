"""OpenVINO by the graphs of one size: layers, head and encoders wholly on it, on its CPU device here.

The plug-in package finds Intel's devices alone; the older build of onnxruntime that has OpenVINO in it runs
on any x86-64 processor:

    pip install onnxruntime-openvino        (in an environment of its own, after pip uninstall -y onnxruntime)
"""

from __future__ import annotations

import numpy as np
import pytest
from nano_variants import EXAMPLES, NANO, STATIC, variant_of

from phirt.generator import Generator
from phirt.runtime.device import Device, devices
from phirt.runtime.session import SessionConfig
from phirt_export.variants.adding import add_targets

PROVIDER = "OpenVINOExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return add_targets(
        NANO, tmp_path_factory.mktemp("nano") / "openvino", ["cpu", "openvino"], options=STATIC
    )


def agreement(bundle, config: SessionConfig, held_out) -> tuple[float, Generator]:
    generator = Generator(variant_of(bundle, "openvino"), config)
    counts = [one.agreement(generator.new_engine()) for one in held_out]
    return sum(right for right, _ in counts) / sum(all_ for _, all_ in counts), generator


def test_weights_of_eight_bits_say_what_the_cpu_says(bundle, held_out) -> None:
    share, generator = agreement(bundle, SessionConfig(), held_out)
    generator.close()
    assert share >= 0.98


@pytest.mark.skipif(
    PROVIDER not in devices(), reason="no onnxruntime with OpenVINO: pip install onnxruntime-openvino"
)
def test_openvino_runs_all_of_it(bundle, held_out) -> None:
    share, generator = agreement(bundle, SessionConfig(Device.named("openvino")), held_out)
    assert share >= 0.98
    for kind, name in (("image", "shapes.png"), ("audio", "seven.flac")):
        rule = next(rule for rule in generator.manifest.rules if kind in rule.modalities)
        features = generator.encoder.features(generator.encoder.prepare(kind, EXAMPLES / name), rule)
        known = next(one for one in held_out if one.prompt.adapter.name == rule.adapter).prompt.spans[0]
        assert np.corrcoef(features.reshape(-1), known.features.reshape(-1))[0, 1] > 0.998
    placements = generator.placements
    assert set(placements) == {"prefill", "decode", "head", "vision", "speech"}
    assert {provider for one in placements.values() for provider in one.nodes} == {PROVIDER}
    generator.close()
