"""What the tests of training share: small data of the real layout, and a finished run of nano in tiny."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from phirt.bundle.manifest import Limits
from phirt_export import precision
from phirt_export.reference import Model, initialize
from phirt_train.chat_format import SPECIAL_TOKENS
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.objectives import find_objective
from phirt_train.progress import ignore
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe

sys.path.insert(0, str(Path(__file__).parent))  # small_recipe, which recipes of tests share

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _beside(name: str) -> Any:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> Any:
    """The module `toy_stage`."""
    return _beside("toy_stage")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(_beside("small_data").write_small_data(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    results = run_recipe(RECIPE, folder, data, scale="tiny")
    assert [result.name for result in results][-1] == "joint"
    return folder


_WORKSHOP = """
name = "workshop"

[model.decoder]
num_layers = 2
hidden_size = 32
num_heads = 2
num_kv_heads = 1
head_dim = 16
intermediate_size = 48
vocab_size = 320
norm_eps = 1e-5
rope = { theta = 1e4, rotary_dim = 16, original_context = 512, context = 512 }

[tokenizer]
vocab_size = 320
"""
_TOWERS = """
[model.vision]
crop_size = 64
patch_size = 16
hidden_size = 32
intermediate_size = 64
num_layers = 1
num_heads = 4
norm_eps = 1e-6
max_crops = 4
pool = 2
stem_channels = [8, 8, 16, 32]

[model.audio]
num_mels = 80
hidden_size = 32
intermediate_size = 48
num_layers = 1
num_heads = 4
kernel_size = 3
bias_max_distance = 500
window_tokens = 500
"""
_ADAPTERS = """
[model.adapters]
vision = { rank = 4, alpha = 8.0 }
speech = { rank = 4, alpha = 8.0 }
"""


def _write_byte_tokenizer(path: Path) -> None:
    """Every byte is a token, behind the special ones."""
    special = SPECIAL_TOKENS.tokens
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: index for index, name in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(path))


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, also where the machine has bfloat16: for comparing with float64."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda _: False)


@pytest.fixture(scope="session")
def towers() -> str:
    """Tables of a vision tower, an audio tower and an adapter for each."""
    return _TOWERS + _ADAPTERS


@pytest.fixture
def workshop(tmp_path: Path, context: Callable[..., TrainingContext]) -> Callable[..., Any]:
    """Makes a stage's model, objective and context of the stage's tables and, beside a small decoder, of
    tables of the model. Data lie in the test's own folder.
    """

    def make(stage: str, tables: str = "", seed: int = 3, **changes: Any) -> Any:
        (tmp_path / "workshop.toml").write_text(_WORKSHOP + tables + "\n[[stage]]\n" + stage)
        _write_byte_tokenizer(tmp_path / "tokenizer.json")
        recipe = load_recipe(tmp_path / "workshop.toml")
        (config,) = recipe.stages
        encoder = ConversationEncoder(tmp_path / "tokenizer.json", recipe.chat_template, recipe.model)
        model = Model(recipe.model)
        initialize(model, seed)
        own = context(encoder, **changes)
        return find_objective(config.objective).build(model, config, own)

    return make


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., TrainingContext]:
    """Makes a stage's context around an encoder; data lie in the test's own folder."""

    def make(encoder: ConversationEncoder, **changes: Any) -> TrainingContext:
        values = {
            "stage": "test", "seed": 1, "data": tmp_path, "cache": tmp_path / "cache", "encoder": encoder,
            "device": torch.device("cpu"), "limits": Limits(10**8, 60.0, 1 << 28), "is_fresh": True,
            "report": ignore,
        }  # fmt: skip
        return TrainingContext(**{**values, **changes})

    return make
