"""The tiny bundle and media files for the runtime's tests."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image


def _load(name: str):
    """A module beside this file; the tests are imported without packages (`--import-mode=importlib`)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny_bundle = _load("tiny_bundle")
_load("tiny_reference")
_load("tiny_embedder")
_load("conversing")
onnx_graphs = _load("onnx_graphs")
check = onnx_graphs.check


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle with all routes; do not change it, see `own_bundle`."""
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def model(bundle):
    """The tiny bundle, loaded once with one thread."""
    import phirt

    return phirt.load(bundle, threads=1)


@pytest.fixture(autouse=True)
def nothing_cached(request):
    """Each test begins without what earlier ones have left in the model's engines."""
    if "model" in request.fixturenames:
        request.getfixturevalue("model").generator.pool.clear()


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A 50 x 30 PNG with a gradient."""
    y, x = np.mgrid[0:30, 0:50]
    pixels = np.stack([x * 5, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("media") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Half a second of a 440 Hz tone at 16 kHz."""
    path = tmp_path_factory.mktemp("media") / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000), 16000)
    return path


@pytest.fixture
def chat(model):
    """A new conversation."""
    return model.chat()


@pytest.fixture(scope="session")
def decoder(bundle):
    """The tiny bundle's opened decoder and its manifest."""
    from phirt.bundle.files import load_manifest
    from phirt.runtime.device import Device
    from phirt.runtime.session import Session, SessionConfig

    manifest = load_manifest(bundle)
    return Session(manifest, "decoder", SessionConfig(Device.cpu(1))), manifest


@pytest.fixture
def new_engine(decoder):
    """Makes engines with an empty cache on that decoder."""
    from phirt.generate.engine import Engine

    return lambda **options: Engine(*decoder, **options)
