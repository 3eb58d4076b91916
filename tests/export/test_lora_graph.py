"""The decoder graph that takes a user's adapter against the reference model with the adapter in its weights:
every route, narrow and wide, any ranks; and against the plain graph where there is none.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from loras import fused, random_lora
from small_models import DecoderRunner, config, random_model, save_checkpoint, session

from phirt.bundle.lora import Lora
from phirt_export.exporter import export_bundle
from phirt_export.graphs import lora as graph_lora
from phirt_export.reference import Model

TOLERANCE = 1e-3
ROUTES = ("none", "vision", "speech")
IDS = [5, 9, 44, 7, 101, 30, 77, 12, 150]


def reference_logits(model: Model, route: str) -> np.ndarray:
    """Logits [T, vocab] of the sequence."""
    with torch.no_grad():
        return model(torch.tensor([IDS]), None, route)[0].numpy()


def run(path, model: Model, route: int, lora: Lora | None) -> np.ndarray:
    """Logits of a prefill of six ids and three decode steps."""
    runner = DecoderRunner(session(path), model.config.decoder)
    steps = [IDS[:6], *([token] for token in IDS[6:])]
    return np.concatenate([runner.run(step, None, route, lora=lora) for step in steps])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("adapters", [("vision", "speech"), ("vision",), ("speech",), ()])
def test_it_adds_to_whatever_adapter_the_route_picks(tmp_path, monkeypatch, wide, adapters):
    if wide:
        monkeypatch.setattr(graph_lora, "_WIDE", 0)
    model = random_model(config(adapters=adapters))
    bundle = export_bundle(save_checkpoint(model, tmp_path / "c"), tmp_path / "b", bits=32)
    first, second = (random_lora(model, seed) for seed in (1, 2))
    seen = []
    for i, route in enumerate(ROUTES):
        own = route if route in adapters else "none"
        for lora, reference in ((first, fused(model, first)), (second, fused(model, second)), (None, model)):
            got = run(bundle / "decoder_lora.onnx", model, i, lora)
            np.testing.assert_allclose(got, reference_logits(reference, own), atol=TOLERANCE)
            seen.append((own, got[-1]))
        np.testing.assert_allclose(seen[-1][1], run(bundle / "decoder.onnx", model, i, None)[-1], atol=1e-5)
    different = [logits for own, logits in seen if own != "none"] + [logits for _, logits in seen[:3]]
    for i, one in enumerate(different):
        assert all(np.abs(one - other).max() > 0.1 for other in different[:i])


def test_both_graphs_share_every_weight(exported):
    graphs = [
        onnx.load(exported.bundle / f"{name}.onnx", load_external_data=False)
        for name in ("decoder", "decoder_lora")
    ]
    stored = [set(map(place, all_initializers(graph.graph))) for graph in graphs]
    assert stored[0] == stored[1]
    names = [node.name for node in graphs[0].graph.input]
    assert [node.name for node in graphs[1].graph.input][: len(names)] == names


def all_initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Those of a graph and of the branches in it that lie in the data file."""
    found = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_initializers(attribute.g)
    return found


def place(tensor: onnx.TensorProto) -> tuple[str, ...]:
    """File, offset and length."""
    return tuple(entry.value for entry in tensor.external_data if entry.key != "checksum")
