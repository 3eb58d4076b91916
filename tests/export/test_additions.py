"""Adding a decoder family or a device target touches one place: here each is one new module, and no other
file of the house changes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkpoints.write import write_checkpoint

from phirt.bundle.files import load_manifest
from phirt.errors import ConfigError
from phirt_export import families, targets
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle

FAMILY = '''"""Made up for a test: Llama's names but for the last norm."""

from phirt_export.published.decoder import read_decoder, separate_parts, text_layout
from phirt_export.published.layout import Part


def read(published):
    """The layout of a checkpoint of this family."""
    decoder = read_decoder(published)
    parts = separate_parts(decoder)
    last = {"model.norm.weight": (Part("model.last.weight"),)}
    return text_layout(published, decoder, lambda name: last.get(name) or parts(name))
'''
TARGET = '''"""Made up for a test: a machine whose sigmoid is a hard one."""

from phirt_export.targets.profile import TargetProfile
from phirt_export.variants.sizes import StaticDefaults


def _warm(r, node, inputs):
    return [r.g.HardSigmoid(inputs[0], name=node.name)]


PROFILE = TargetProfile(
    "toasters", providers=("ToasterExecutionProvider",), passes=({"Sigmoid": _warm},),
    static=StaticDefaults(8, 64),
)
'''


@pytest.fixture
def add_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts one new module into a package of the house, in a folder of the test's own."""

    def add(package: ModuleType, name: str, source: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return add


def test_a_decoder_family_is_one_module(add_module, tmp_path: Path, ranks: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_checkpoint(tmp_path / "made_up", "mistral", ranks)
    known = Checkpoint(folder)
    expected = known.tensor("model.norm.weight")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**document, "model_type": "made_up", "sliding_window": None})
    )
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.last.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, weights)
    with pytest.raises(ConfigError, match="'made_up' is none that phirt builds itself"):
        Checkpoint(folder)
    add_module(families, "made_up", FAMILY)
    assert "made_up" in families.known_families()
    assert (Checkpoint(folder).tensor("model.norm.weight") == expected).all()
    manifest = load_manifest(export_bundle(folder, tmp_path / "bundle", bits=4, method="rtn"))
    assert manifest.geometry.num_kv_heads == document["num_key_value_heads"]


def test_a_device_target_is_one_profile(add_module, tmp_path: Path, talking_checkpoint: Path) -> None:
    import onnx_ir as ir

    settings = {"targets": ["cpu", "toaster"], "bits": 8, "method": "rtn"}
    with pytest.raises(ConfigError, match="target 'toaster' cannot be built; choose from cpu"):
        export_bundle(talking_checkpoint, tmp_path / "bundle", **settings)
    add_module(targets, "toaster", TARGET)
    manifest = load_manifest(export_bundle(talking_checkpoint, tmp_path / "bundle", **settings))
    variant = manifest.variants["toaster"]
    assert variant.providers == ("ToasterExecutionProvider",)
    assert {graph.target for graph in variant.graphs.values()} == {"toaster", "cpu"}
    kinds = {node.op_type for node in ir.load(manifest.path(variant.graphs["decode"].file)).graph}
    assert "HardSigmoid" in kinds and "Sigmoid" not in kinds
