"""Encoders of other kinds than Phi-4-multimodal's, from torch modules to conversations; and what adding one
takes: a module in `phirt/encoders/` for a kind, a module in `families/` for a family, and nothing else.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import save_talking_checkpoint
from tokenizers import Tokenizer

import phirt
import phirt.encoders
import phirt_export.families
from phirt import GenerationConfig
from phirt.bundle.files import load_manifest
from phirt.bundle.manifest import Rule
from phirt.encoders.fixed_image import FixedImageConstants, process
from phirt.encoders.whisper_audio import log_mel
from phirt_export.exporter import export_bundle

HERE = Path(__file__).parent
SHORT = GenerationConfig(max_new_tokens=6, temperature=0.0)
HIDDEN = 64
IMAGE, AUDIO = 1, 2


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """The families of the tests beside those of the package."""
    monkeypatch.setattr(
        phirt_export.families, "__path__", [*phirt_export.families.__path__, str(HERE / "toy_families")]
    )


def checkpoint(folder: Path, family: str, tensors: dict[str, torch.Tensor], **more) -> Path:
    """A random Llama with the tensors of encoders beside it, behind a real tokenizer and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    save_talking_checkpoint(folder)
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    state = {name: tensor for name, tensor in llama.state_dict().items() if name != "lm_head.weight"}
    save_file({name: t.clone() for name, t in (state | tensors).items()}, folder / "model.safetensors")
    document = json.loads(config.to_json_string(use_diff=False)) | {"model_type": family, **more}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def modules():
    """The torch modules that the toy family exports."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("toy_vlm", HERE / "toy_families" / "toy_vlm.py")
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    return toy.random_modules(HIDDEN)


@pytest.fixture(scope="module")
def source(tmp_path_factory, modules) -> Path:
    """A checkpoint with eyes and ears."""
    tensors = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    return checkpoint(folder, "toy_vlm", tensors, image_token_id=IMAGE, audio_token_id=AUDIO)


@pytest.fixture
def model(source, tmp_path) -> phirt.Model:
    """Its unquantized bundle, loaded."""
    return phirt.load(export_bundle(source, tmp_path / "bundle", bits=32), threads=1)


@pytest.fixture
def picture(tmp_path) -> Path:
    """A PNG of 90 x 60."""
    y, x = np.mgrid[0:60, 0:90]
    path = tmp_path / "picture.png"
    Image.fromarray(np.stack([x * 2, y * 4, x + y], axis=-1).astype(np.uint8)).save(path)
    return path


def sound(seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * 16000)) / 16000
    return (0.4 * np.sin(2 * np.pi * 330 * time) * np.sin(2 * np.pi * time)).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def features_of(model: phirt.Model, source: object, modality: str = "image") -> np.ndarray:
    """What the decoder is given for a picture or a clip."""
    encoder = model.generator.encoder
    return encoder.features(encoder.prepare(modality, source), model.manifest.rules[-1])


def test_the_manifest_names_kinds_with_their_constants_and_the_rules(model):
    manifest = model.manifest
    assert {name: spec.kind for name, spec in manifest.encoders.items()} == {
        "eyes": "fixed_image",
        "ears": "whisper_audio",
    }
    assert manifest.encoders["ears"].constants == {
        "num_mels": 80, "frames_per_token": 40, "padding": "dropped",
    }  # fmt: skip
    assert (manifest.modalities, manifest.placeholders, manifest.adapters) == (("image", "audio"), (1, 2), {})
    assert manifest.rules == (Rule(("image",), None, {}), Rule(("audio",), None, {}), Rule((), None, {}))
    assert manifest.limits.audio_seconds == 1800.0


def test_features_are_those_of_the_torch_modules(model, modules, picture):
    half = (0.5, 0.5, 0.5)
    with Image.open(picture) as opened, torch.no_grad():
        pixels = process(opened.convert("RGB"), FixedImageConstants(56, 16, half, half))
        expected = modules["eyes"](torch.from_numpy(pixels[None]))
    np.testing.assert_allclose(features_of(model, picture), expected, atol=1e-5)
    samples = sound(31.0)
    windows = [torch.from_numpy(log_mel(part, 80)[None]) for part in (samples[:480000], samples[480000:])]
    with torch.no_grad():
        expected = torch.cat([modules["ears"](window) for window in windows])[:78]
    np.testing.assert_allclose(features_of(model, wav(samples), "audio"), expected, atol=1e-5)


def test_a_conversation_sees_hears_and_goes_on(model, picture, tmp_path):
    clip = wav(sound(2.0))
    chat = model.chat(system="Be brief.")
    first = chat.send("What is it?", images=[picture], config=SHORT).result
    assert first.adapter == "none"
    assert (first.usage.image_tokens, first.prompt_token_ids.count(IMAGE)) == (16, 16)
    second = chat.send("And this?", audio=[clip], config=SHORT).result
    assert (second.usage.audio_tokens, second.prompt_token_ids.count(AUDIO)) == (5, 5)
    assert second.usage.cached_tokens >= len(first.prompt_token_ids)  # no adapter changes, nothing runs again
    assert model.generator.encoder.open_graphs == ("eyes", "ears")
    other = model.chat(system="Be brief.").send("What is it?", config=SHORT).result
    assert other.prompt_token_ids.count(IMAGE) == 0
    assert model.count_tokens("What is it?", images=[picture], audio=[clip]).images == (16,)
    chat.save(tmp_path / "talk")
    restored = model.load_chat(tmp_path / "talk")
    expected = chat.send("Go on", config=SHORT).result
    result = restored.send("Go on", config=SHORT).result
    assert result.token_ids == expected.token_ids
    # How many tokens are drafted follows from measured times.
    kept = ("prompt_tokens", "cached_tokens", "image_tokens", "audio_tokens", "new_tokens")
    assert [getattr(result.usage, name) for name in kept] == [getattr(expected.usage, name) for name in kept]


def test_the_decoder_reads_the_features(model, picture, source):
    """Greedy ids are those of transformers' Llama on embeddings with the features in their places."""
    from transformers import LlamaConfig, LlamaForCausalLM

    result = model.chat().send("What is it?", images=[picture], config=SHORT).result
    features = torch.from_numpy(features_of(model, picture).copy())
    config = json.loads((source / "config.json").read_text()) | {"model_type": "llama"}
    llama = LlamaForCausalLM(LlamaConfig(**config)).eval()
    stored = load_file(source / "model.safetensors")
    llama.load_state_dict({k: v for k, v in stored.items() if k.startswith("model.")}, strict=False)
    llama.tie_weights()
    ids = torch.tensor([result.prompt_token_ids])
    embedded = llama.get_input_embeddings()(ids)
    embedded[ids == IMAGE] = features
    found: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            logits = llama(inputs_embeds=embedded).logits[0, -1]
            logits[[IMAGE, AUDIO]] = -torch.inf
            token = int(logits.argmax())
            if token in model.manifest.tokens.eos:
                break
            found.append(token)
            embedded = torch.cat([embedded, llama.get_input_embeddings()(torch.tensor([[token]]))], dim=1)
    assert list(result.token_ids) == found


def test_quantized_encoders_stay_close(source, picture, tmp_path, model):
    small = phirt.load(
        export_bundle(source, tmp_path / "small", bits=8, block_size=16, method="rtn"), threads=1
    )
    features = [features_of(one, picture) for one in (model, small)]
    assert 0 < np.abs(features[0] - features[1]).max() < 0.05 * np.abs(features[0]).max()


def test_an_export_sets_limits(source, tmp_path, picture):
    from phirt.errors import ConfigError, MediaError
    from phirt_export.bundle import LimitOptions

    limits = LimitOptions(image_pixels=1000, audio_seconds=5.0, context=300)
    bundle = export_bundle(source, tmp_path / "b", bits=32, limits=limits)
    assert load_manifest(bundle).limits.context == 300
    model = phirt.load(bundle, threads=1)
    with pytest.raises(MediaError, match="1000"):
        model.chat().send("x", images=[picture])
    with pytest.raises(MediaError, match="longer than 5 seconds"):
        model.chat().send("x", audio=[wav(sound(6.0))])
    for wrong in (LimitOptions(context=513), LimitOptions(image_pixels=-1), LimitOptions(audio_seconds=1e9)):
        with pytest.raises(ConfigError, match="limits"):
            export_bundle(source, tmp_path / "c", bits=32, limits=wrong)


def test_adding_a_kind_is_one_module_and_adding_its_family_another(tmp_path, monkeypatch, picture):
    """`toy_kinds/mean_colour.py` and `toy_families/toy_colours.py` lie where their packages look; nothing
    else is told of them.
    """
    monkeypatch.setattr(phirt.encoders, "__path__", [*phirt.encoders.__path__, str(HERE / "toy_kinds")])
    torch.manual_seed(2)
    weight, bias = torch.randn(HIDDEN, 3), torch.randn(HIDDEN)
    tensors = {"colours.projector.weight": weight, "colours.projector.bias": bias}
    folder = checkpoint(tmp_path / "c", "toy_colours", tensors, image_token_id=IMAGE)
    model = phirt.load(export_bundle(folder, tmp_path / "b", bits=32), threads=1)
    colour = np.asarray(Image.open(picture), dtype=np.float32).mean((0, 1)) / 255
    expected = weight.numpy() @ colour + bias.numpy()
    np.testing.assert_allclose(features_of(model, picture)[0], expected, atol=1e-4)
    result = model.chat().send("What is it?", images=[picture], config=SHORT).result
    assert result.usage.image_tokens == result.prompt_token_ids.count(IMAGE) == 1
    with pytest.raises(phirt.BundleError, match="takes no audio, accepted: text, images"):
        model.chat().send("x", audio=[wav(sound(1.0))])
    broken = dataclasses.replace(model.manifest.encoders["colours"], constants={"white": 0})
    manifest = dataclasses.replace(model.manifest, encoders={"colours": broken})
    from phirt.encoders.encoder import open_encoders

    with pytest.raises(phirt.BundleError, match="'white' is 0, expected a number from 1 to 255"):
        open_encoders(manifest)
