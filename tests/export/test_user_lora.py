"""A user's LoRA on an exported bundle against PEFT's merged model: greedy ids of every family, beside the
bundle's own adapters, and two adapters at once.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.write import write_checkpoint
from phi4_published import AFTER, BEFORE, Image, fused, published_images
from small_models import rope
from three_ways import STEPS, TOLERANCE, load_published, load_reference

from phirt.bundle.files import load_manifest
from phirt.bundle.peft import read_lora
from phirt.errors import AdapterError
from phirt.generate.engine import Engine
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.runtime.device import Device
from phirt.runtime.lora import LoraInputs
from phirt.runtime.session import Session, SessionConfig
from phirt_export.exporter import export_bundle
from phirt_export.reference import DecoderConfig

pytest.importorskip("transformers", reason="transformers has the published models")
peft = pytest.importorskip("peft", reason="PEFT makes the adapters and merges them")

SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def save_adapter(base: Any, folder: Path, seed: int, **settings: Any) -> Any:
    """Write an adapter with random matrices; returns the merged model, in float32."""
    dtype = settings.pop("dtype", torch.float32)
    usual = {"r": 6, "lora_alpha": 9, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{**usual, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                gain = 0.5 if "lora_B" in name else 1.0
                noise = torch.randn(tensor.shape, generator=generator) * gain * tensor.shape[1] ** -0.5
                tensor.copy_(noise.to(dtype))
    if dtype is not torch.float32:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.lora_A.to(dtype)
                module.lora_B.to(dtype)
    model.save_pretrained(str(folder))
    return model.to(torch.float32).merge_and_unload().eval()


class Bundle:
    """An exported bundle whose decoder takes the adapters in these folders."""

    def __init__(self, folder: Path, adapters: dict[str, Path]) -> None:
        self.manifest = load_manifest(folder)
        loras = {name: read_lora(path, self.manifest.geometry) for name, path in adapters.items()}
        self.digests = {name: lora.digest() for name, lora in loras.items()}
        session = Session(self.manifest, "decoder_lora", SessionConfig(Device.cpu(1)))
        by_digest = {self.digests[name]: lora for name, lora in loras.items()}
        inputs = LoraInputs(session.spec, self.manifest.geometry, by_digest)
        self.new_engine = lambda: Engine(session, self.manifest, loras=inputs, prefill_chunk=16)

    def generate(
        self,
        ids: list[int],
        adapter: str | None,
        own: str = "none",
        spans: tuple[MediaSpan, ...] = (),
        engine: Engine | None = None,
        steps: int = STEPS,
    ) -> tuple[list[int], np.ndarray]:
        """Greedy ids, and the logits [steps, vocab] that they were chosen by."""
        lora = None if adapter is None else self.digests[adapter]
        prompt, seen = Prompt(np.array(ids, np.int64), spans, Adapter(own, lora)), []

        def choose(logits: np.ndarray) -> int:
            seen.append(logits.copy())
            return self.choose(logits)

        engine = engine or self.new_engine()
        tokens = list(engine.generate(prompt, choose, max_new_tokens=steps, eos=()))
        return tokens, np.stack(seen)

    def choose(self, logits: np.ndarray) -> int:
        """The most likely id that is no placeholder."""
        allowed = logits.copy()
        allowed[list(self.manifest.placeholders)] = -np.inf
        return int(allowed.argmax())

    def assert_merged(self, merged: Any, ids: list[int], generated: Any, inputs: Any = None) -> None:
        """Ids and logits are those of the merged model."""
        tokens, logits = generated
        rope = self.manifest.geometry.rope
        whole = [*ids, *tokens[:-1]]
        with torch.no_grad():
            expected = merged(torch.tensor([whole]), **(inputs or {})).logits[0].numpy()
            if self.manifest.geometry.has_long_regime and len(whole) > rope.original_context:
                short = torch.tensor([whole[: rope.original_context]])
                expected[: rope.original_context] = merged(short, **(inputs or {})).logits[0].numpy()
        expected = expected[-len(tokens) :]
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
        assert tokens == [self.choose(row) for row in expected]


def text(count: int, seed: int = 0) -> list[int]:
    """Ordinary ids."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, 330, count)]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("phi-4-mini", {"target_modules": FUSED}),
        ("phi-3-mini", {"target_modules": ["qkv_proj", "down_proj"], "use_rslora": True}),
        ("phi-4", {"target_modules": "all-linear", "dtype": torch.bfloat16}),
        ("llama", {"target_modules": SPLIT, "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 11}}),
        ("llama-biased", {"target_modules": "all-linear", "alpha_pattern": {"layers.0.mlp.up_proj": 30}}),
        ("mistral", {"target_modules": r".*layers\.1\.(self_attn\.(q|v)|mlp\.gate)_proj"}),
        ("qwen2", {"target_modules": ["k_proj", "v_proj", "up_proj"], "layers_to_transform": [1]}),
        ("qwen3", {"target_modules": ["q_proj", "o_proj"], "dtype": torch.float16, "lora_alpha": 3}),
    ],
)  # fmt: skip
def test_greedy_ids_equal_the_merged_model(tmp_path, ranks, family, settings):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", family, ranks)
    base = load_published(checkpoint)
    merged = save_adapter(base, tmp_path / "adapter", 1, **settings)
    bundle = Bundle(export_bundle(checkpoint, tmp_path / "bundle", bits=32), {"mine": tmp_path / "adapter"})
    ids, engine = text(30), bundle.new_engine()
    adapted = bundle.generate(ids, "mine", engine=engine)
    bundle.assert_merged(merged, ids, adapted)
    bundle.assert_merged(base, ids, bundle.generate(ids, None, engine=engine))  # and back to the base
    assert np.abs(adapted[1][0] - bundle.generate(ids, None)[1][0]).max() > 0.1


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory, ranks) -> tuple[Path, Path, Any]:
    """Phi-4-multimodal: its original layout, its bundle, and transformers' model of the same weights."""
    folder = tmp_path_factory.mktemp("multimodal")
    for family in ("phi4mm", "phi4_multimodal"):
        write_checkpoint(folder / family, family, ranks)
    bundle = export_bundle(folder / "phi4mm", folder / "bundle", bits=32)
    return folder, bundle, load_published(folder / "phi4_multimodal")


@pytest.mark.parametrize("family", ["phi4mm", "phi4_multimodal"])
def test_it_adds_to_the_bundles_own_adapter(multimodal, tmp_path, family):
    folder, exported, base = multimodal
    if family == "phi4_multimodal":
        exported = export_bundle(folder / family, tmp_path / "bundle", bits=32)
    targets = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
    merged = save_adapter(base, tmp_path / "adapter", 2, target_modules=targets)
    bundle = Bundle(exported, {"mine": tmp_path / "adapter"})
    ids = [*BEFORE, *AFTER]
    bundle.assert_merged(merged, ids, bundle.generate(ids, "mine"))

    image = Image(1, 1)
    ways = type("Ways", (), {"bundle": exported, "reference": load_reference(folder / "phi4mm")})
    media = image.media(ways)
    ids = [*BEFORE, *[media.token] * len(media.bundle_rows), *AFTER]
    spans = (MediaSpan(len(BEFORE), media.bundle_rows, "picture"),)
    engine = bundle.new_engine()
    for published, adapter in ((merged, "mine"), (base, None)):
        seeing = fused(published, folder / "phi4_multimodal" / "vision-lora")
        generated = bundle.generate(ids, adapter, "vision", spans, engine, steps=16)
        bundle.assert_merged(seeing, ids, generated, published_images(image))


def test_two_adapters_in_two_threads_at_once(tmp_path, ranks):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama", ranks)
    base = load_published(checkpoint)
    settings = {"one": {"target_modules": SPLIT}, "two": {"target_modules": ["q_proj", "down_proj"], "r": 13}}
    merged = {
        name: save_adapter(base, tmp_path / name, seed, **changes)
        for seed, (name, changes) in enumerate(settings.items())
    }
    exported = export_bundle(checkpoint, tmp_path / "bundle", bits=32)
    bundle = Bundle(exported, {name: tmp_path / name for name in settings})
    ids, results = text(30), {}

    def run(name: str | None) -> None:
        engine = bundle.new_engine()
        for _ in range(3):
            results[name] = bundle.generate(ids, name, engine=engine)
            engine.reset()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, published in (merged | {None: base}).items():
        bundle.assert_merged(published, ids, results[name])


def test_only_a_change_of_the_adapter_runs_the_history_again(tmp_path, ranks):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama", ranks)
    save_adapter(load_published(checkpoint), tmp_path / "adapter", 3, target_modules=SPLIT)
    bundle = Bundle(export_bundle(checkpoint, tmp_path / "bundle", bits=32), {"mine": tmp_path / "adapter"})
    engine, ids = bundle.new_engine(), text(40)
    runs: list[tuple[str, int]] = []
    for adapter, length, expected in (
        ("mine", 30, ("prompt", 30)),
        ("mine", 40, ("prompt", 10)),
        (None, 40, ("adapter", 40)),
        (None, 35, ("prompt", 1)),
        ("mine", 40, ("adapter", 40)),
    ):
        under = Adapter("none", bundle.digests.get(adapter))
        prompt = Prompt(np.array(ids[:length], np.int64), (), under)
        engine.prefill_prompt(prompt, on_progress=lambda p: runs.append((p.reason, p.total)))
        assert runs[-1] == expected and engine.cached.adapter == under
        engine.decode_step(7)
        assert engine.cached.adapter == under


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "(DoRA)"),
        ({"bias": "all"}, "it changes biases"),
        ({"lora_bias": True}, "biases (lora_bias)"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "it changes embeddings"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it changes the output head"),
        ({"trainable_token_indices": [3, 4]}, "embeddings of tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [0, 2]]}, "it repeats layers"),
    ],
)
def test_what_peft_saves_and_cannot_be_added_is_refused(tmp_path, settings, said):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=50, tie_word_embeddings=False,
    )  # fmt: skip
    usual = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(**{**usual, **settings}))
    model.save_pretrained(str(tmp_path))
    sizes = DecoderConfig(2, 64, 4, 2, 16, 96, 50, 1e-5, rope())
    with pytest.raises(AdapterError) as caught:
        read_lora(tmp_path, sizes)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_of_the_encoders_is_refused(multimodal, tmp_path):
    _, exported, base = multimodal
    save_adapter(base, tmp_path / "adapter", 4, target_modules=["q_proj", "qkv_proj"])  # theirs are called so
    with pytest.raises(AdapterError, match="it changes encoders of images or audio"):
        read_lora(tmp_path / "adapter", load_manifest(exported).geometry)
