"""Small random checkpoints for the export tests, and a plain onnxruntime runner of the exported graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from phirt.bundle.lora import ACTIVE_INPUT, NO_LORA, Lora
from phirt_export.reference import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    VisionConfig,
)
from phirt_quant import samples
from phirt_train.chat_format import SPECIAL_TOKENS

IMAGE, AUDIO = 1, 2
NO_TOKENS = """{
    "version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []},
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
}"""
_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}{{ '<|assistant|>' }}"
)


def rope(original_context: int = 128, context: int = 128, long: bool = False) -> RopeConfig:
    """8 rotated pairs of a head of 32; `long` gives them factors of their own past the original context."""
    short = (1.0,) * 8
    return RopeConfig(
        theta=10000.0,
        rotary_dim=16,
        original_context=original_context,
        context=context,
        short_factor=short,
        long_factor=tuple(1.0 + 0.5 * i for i in range(8)) if long else short,
    )


def config(
    *, stem: bool = True, rotary: RopeConfig | None = None, adapters: tuple[str, ...] = ("vision", "speech")
) -> ModelConfig:
    """A model of a few hundred thousand weights with every feature."""
    branches = {"vision": AdapterConfig(8, 16.0), "speech": AdapterConfig(12, 24.0)}
    return ModelConfig(
        decoder=DecoderConfig(
            num_layers=3, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=96,
            vocab_size=160, norm_eps=1e-5, rope=rotary or rope(),
        ),
        tokens=TokenConfig(bos=0, pad=0, eos=(0, 4), image=IMAGE, audio=AUDIO),
        vision=VisionConfig(
            crop_size=32, patch_size=8, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=3,
            norm_eps=1e-6, max_crops=6, stem_channels=(16, 24, 48) if stem else (),
        ),
        audio=AudioConfig(
            num_mels=80, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, kernel_size=3,
            bias_max_distance=6, window_tokens=10,
        ),
        adapters={name: branches[name] for name in adapters},
    )  # fmt: skip


def random_model(model_config: ModelConfig, seed: int = 0) -> Model:
    """Every tensor drawn at random, so that no bias, norm, buffer or branch can be left out unnoticed."""
    model = Model(model_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("running_var", "global_invstd")):
                tensor.copy_(0.5 + noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.dim() >= 2 and "_GN" not in name and "embed_tokens.weight" not in name:
                tensor.copy_(noise * 1.2 * tensor[0].numel() ** -0.5)
            else:
                tensor.copy_(0.5 * noise)
    return model


def save_checkpoint(model: Model, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `folder` as a checkpoint; its tokenizer knows no tokens, and its template is no dialogue."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json())
    (folder / "tokenizer.json").write_text(NO_TOKENS)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def save_talking_checkpoint(folder: Path) -> Path:
    """Random weights behind a real tokenizer and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.tokens]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(samples.SENTENCES, trainer)
    small = config(stem=False, rotary=rope(1024, 1024))
    decoder = dataclasses.replace(small.decoder, vocab_size=tokenizer.get_vocab_size())
    model = random_model(dataclasses.replace(small, decoder=decoder))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.2)
    save_checkpoint(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return folder


def session(path: Path) -> ort.InferenceSession:
    """One-threaded, so that tests do not compete."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclasses.dataclass
class DecoderRunner:
    """Runs a decoder graph chunk by chunk over one shared buffer of keys and values."""

    graph: ort.InferenceSession
    config: DecoderConfig
    capacity: int = 256

    def __post_init__(self) -> None:
        c = self.config
        shape = (1, c.num_kv_heads, self.capacity, c.head_dim)
        kinds = {i.name: i.type for i in self.graph.get_inputs()}
        dtype = np.int8 if kinds["past_key_values.0.key"] == "tensor(int8)" else np.float32
        self.buffers = [
            ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype)) for _ in range(2 * c.num_layers)
        ]
        self.length = 0

    def run(
        self,
        ids: list[int],
        media: np.ndarray | None = None,
        route: int = 0,
        num_logits: int | None = None,
        announced: int = 0,
        lora: Lora | None = None,
    ) -> np.ndarray:
        """Logits [num_logits, vocab] (all of the chunk by default); the sequence grows by `ids`.

        `announced` is the length that a prompt in chunks will have, if that is more than the length after
        this chunk; `lora` is for the graph that takes one.
        """
        c = self.config
        self.length += len(ids)
        media = np.zeros((0, c.hidden_size), np.float32) if media is None else media
        binding = self.graph.io_binding()
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "media_features": media,
            "route": np.array([route], np.int64),
            "num_logits": np.array([len(ids) if num_logits is None else num_logits], np.int64),
            "seqlens_k": np.array([self.length - 1], np.int32),
            "total_sequence_length": np.array([max(self.length, announced)], np.int32),
        }
        feeds |= dict((lora or NO_LORA).matrices(c)) | {ACTIVE_INPUT: np.array([lora is not None])}
        declared = {i.name for i in self.graph.get_inputs()}
        for name, array in feeds.items():
            if name in declared:
                binding.bind_ortvalue_input(
                    name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                )
        for i in range(c.num_layers):
            for j, part in enumerate(("key", "value")):
                binding.bind_ortvalue_input(f"past_key_values.{i}.{part}", self.buffers[2 * i + j])
                binding.bind_ortvalue_output(f"present.{i}.{part}", self.buffers[2 * i + j])
        binding.bind_output("logits")
        self.graph.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()[0]
