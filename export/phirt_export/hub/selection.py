"""Which files of a repository an export needs: documents, tokenizers, templates, safetensors.

Knows the names that published checkpoints use. Pickled weights and code are never among them. Opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from phirt_export.containers import INDEX_NAME, WEIGHTS_NAME, some
from phirt_export.hub.errors import HubError
from phirt_export.hub.names import HubId

CONFIG_NAME, ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_DOCUMENTS = re.compile(
    r"(?:(?:generation_|tokenizer_|preprocessor_|processor_|adapter_|quantize_|quant_)?config|tokenizer|tekken"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja|additional_chat_templates/[\w-]{1,64}\.jinja"
    r"|(?:tokenizer|spiece|sentencepiece\.bpe)\.model|[\w-]{1,64}\.tiktoken"
    r"|(?:vision|speech)-lora/adapter_config\.json"
    r"|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d{1,2}_[A-Za-z]{1,32}/config\.json"  # of the steps behind an encoder
)
_ROUTES = re.compile(r"(?:vision|speech)-lora/adapter_model\.safetensors")
_GGUF_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_MAX_SHARDS = 1024
_SHARD = re.compile(r"[\w][\w.-]{0,120}\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def documents(names: Collection[str]) -> list[str]:
    """What says how the weights are meant."""
    return sorted(name for name in names if _DOCUMENTS.fullmatch(name))


def needs_index(names: Collection[str]) -> bool:
    """Whether only the index tells which files hold the weights; others often repeat them."""
    return WEIGHTS_NAME not in names and INDEX_NAME in names


def weights(names: Collection[str], shards: Collection[str], of: HubId) -> list[str]:
    """The files with the weights; `shards` are those that the index names, where it is needed.

    Raises:
        HubError: the repository holds none that are read.
    """
    found = [name for name in names if _ROUTES.fullmatch(name)]
    if WEIGHTS_NAME in names:
        found.append(WEIGHTS_NAME)
    elif INDEX_NAME in names:
        if lost := sorted(shard for shard in shards if shard not in names or not _SHARD.fullmatch(shard)):
            raise HubError(
                f"{of.repo} lacks {some(lost)}, which its {INDEX_NAME} names; try another --revision"
            )
        found += [INDEX_NAME, *shards]
    elif ADAPTER_WEIGHTS_NAME in names:
        found.append(ADAPTER_WEIGHTS_NAME)
    else:
        raise HubError(_why_none(names, of))
    return sorted(found)


def gguf_files(names: Collection[str], of: HubId) -> list[str]:
    """The one file that an id means, with the others where it is one of several shards.

    Raises:
        HubError: the repository lacks one.
    """
    assert of.file is not None
    wanted = [of.file]
    if (shard := _GGUF_SHARD.fullmatch(of.file)) is not None:
        count = min(int(shard[2]), _MAX_SHARDS)
        wanted = [f"{shard[1]}-{number:05}-of-{shard[2]}.gguf" for number in range(1, count + 1)]
    if lost := [name for name in wanted if name not in names]:
        held = ", ".join(name for name in sorted(names) if name.endswith(".gguf")) or "no GGUF file"
        raise HubError(f"{of.repo} holds no {lost[0]}; it has {held:.300}")
    return wanted


def _why_none(names: Collection[str], of: HubId) -> str:
    if files := sorted(name for name in names if name.endswith(".gguf")):
        return f"{of.repo} holds GGUF files; name one: {', '.join(f'{of.repo}/{name}' for name in files[:3])}"
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        return (
            f"{of.repo} holds pickled weights alone ({some(pickled)}), which can run code when opened and "
            "are not fetched; choose a repository or a --revision with safetensors"
        )
    return f"{of.repo} holds no {WEIGHTS_NAME} and no {INDEX_NAME}, so it is no checkpoint; check the name"
