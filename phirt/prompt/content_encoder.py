"""Text from outside to ids, by the model of a tokenizer.json without its control tokens.

Knows the two kinds of models, BPE and Unigram. No path leads from text to a control token: a BPE loses their
names, and so does a Unigram, whose ids are places in a list, in exchange for names that nobody can type.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Set
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as _Tokenizer
from tokenizers.models import BPE, Unigram

from phirt.prompt.charsmap import Charsmap

_BPE_OPTIONS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_NO_MODEL: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
_PLAIN: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
}  # fmt: skip


class ContentEncoder:
    """Encodes text that stands behind a control token, or (`begins`) where a prompt begins: some tokenizers
    write a space there and nowhere else. Raises whatever the library raises for a document that it cannot
    use, or KeyError, TypeError or ValueError.
    """

    def __init__(self, document: dict[str, Any], control: Set[str]) -> None:
        model = document["model"]
        self._map_characters, normalizer = _character_map(document.get("normalizer"))
        parts = {"normalizer": normalizer, "decoder": document.get("decoder"), "model": _NO_MODEL}
        pre_tokenizer = document.get("pre_tokenizer")
        behind = _nothing_first(pre_tokenizer)
        self._behind = _Tokenizer.from_str(json.dumps(_PLAIN | parts | {"pre_tokenizer": behind}))
        # The vocabulary is handed over as it is: as JSON a second time, 200,000 tokens would take half a
        # second.
        self._unigram = _Unigram(model, control) if model.get("type") == "Unigram" else None
        self._behind.model = _bpe(model, control) if self._unigram is None else self._unigram.model
        self._first = self._behind
        if behind != pre_tokenizer:
            self._first = _Tokenizer.from_str(json.dumps(_PLAIN | parts | {"pre_tokenizer": pre_tokenizer}))
            self._first.model = self._behind.model

    def encode(self, text: str, begins: bool = False) -> list[int]:
        """Ids of the text."""
        if self._map_characters is not None:
            text = self._map_characters(text)
        encoding = (self._first if begins else self._behind).encode(text, add_special_tokens=False)
        return list(encoding.ids) if self._unigram is None else self._unigram.ids(encoding)

    def id_of(self, name: str) -> int | None:
        """The id of a token that is no control token."""
        hidden = None if self._unigram is None else self._unigram.ids_of_bytes.get(name)
        found: int | None = self._behind.token_to_id(name) if hidden is None else hidden
        return found

    def name_of(self, token: int) -> str:
        """The name of such an id; empty for one that has none."""
        hidden = None if self._unigram is None else self._unigram.names_of_bytes.get(token)
        return hidden or str(self._behind.id_to_token(token) or "")


class _Unigram:
    """A Unigram model, in which text finds neither control tokens nor the names of bytes: as in
    sentencepiece, bytes stand only for characters that are unknown.
    """

    def __init__(self, model: dict[str, Any], control: Set[str]) -> None:
        entries = [(name, float(score)) for name, score in model["vocab"]]
        self._unknown: int | None = model.get("unk_id")
        ids = {name: index for index, (name, _) in enumerate(entries)}
        falls_back = model.get("byte_fallback") is True and ids.keys() >= set(_BYTES)
        self.ids_of_bytes = {name: ids[name] for name in _BYTES} if falls_back else {}
        self.names_of_bytes = {index: name for name, index in self.ids_of_bytes.items()}
        self._bytes = list(self.ids_of_bytes.values())
        unknown = len(entries) if self._unknown is None else self._unknown
        if self._unknown is None:  # the library takes none without: what it stands for is left out then
            entries.append(("", min(score for _, score in entries)))
        secret = secrets.token_hex(16)
        for index, (name, score) in enumerate(entries):
            if name in control or name in self.ids_of_bytes or index == unknown:
                entries[index] = (f"{secret}{index}", score)
        self._id_of_unknown = unknown
        self.model = Unigram(entries, unknown, False)

    def ids(self, encoding: Encoding) -> list[int]:
        """Those of the library, with unknown characters as their bytes where the model has them."""
        if self._id_of_unknown not in encoding.ids:
            return list(encoding.ids)
        ids: list[int] = []
        for token, text in zip(encoding.ids, encoding.tokens, strict=True):
            if token != self._id_of_unknown:
                ids.append(token)
            elif self._bytes:
                ids += [self._bytes[byte] for byte in text.encode()]
            elif self._unknown is not None:
                ids.append(token)
        return ids


def _bpe(model: dict[str, Any], control: Set[str]) -> BPE:
    vocab = {name: index for name, index in model["vocab"].items() if name not in control}
    options = {key: model[key] for key in _BPE_OPTIONS if model.get(key) is not None}
    if options.get("unk_token") not in vocab:  # unknown characters are left out then, instead of an error
        options.pop("unk_token", None)
    return BPE(vocab, _pairs(model["merges"]), **options)


def _pairs(merges: list[str | list[str]]) -> list[tuple[str, str]]:
    """Both parts of each merge, which older files write as one string, below a line with their version."""
    pairs = []
    for merge in merges:
        if isinstance(merge, str) and merge.startswith("#version"):
            continue
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((first, second))
    return pairs


def _character_map(normalizer: Any) -> tuple[Callable[[str], str] | None, Any]:
    """What sentencepiece's table of characters does, with the steps before it, and the steps behind it, which
    are left to the library: all, where there is no table.
    """
    steps = _steps(normalizer)
    at = next((i for i, step in enumerate(steps) if step.get("type") == "Precompiled"), None)
    if at is None:
        return None, normalizer
    charsmap = Charsmap(base64.b64decode(steps[at]["precompiled_charsmap"] or "", validate=True))
    around = _PLAIN | {"pre_tokenizer": None, "decoder": None, "model": _NO_MODEL}
    before = {"type": "Sequence", "normalizers": steps[:at]}
    first = _Tokenizer.from_str(json.dumps(around | {"normalizer": before})).normalizer

    def normalize(text: str) -> str:
        return charsmap.normalize(first.normalize_str(text))

    return normalize, {"type": "Sequence", "normalizers": steps[at + 1 :]}


def _steps(normalizer: Any) -> list[dict[str, Any]]:
    if not isinstance(normalizer, dict):
        return []
    if normalizer.get("type") != "Sequence":
        return [normalizer]
    return [step for one in normalizer["normalizers"] for step in _steps(one)]


def _nothing_first(pre_tokenizer: Any) -> Any:
    """A Metaspace that writes its space only before the very first word of a text writes none: content stands
    behind a control token.
    """
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    if isinstance(pre_tokenizer.get("pretokenizers"), list):
        return {**pre_tokenizer, "pretokenizers": list(map(_nothing_first, pre_tokenizer["pretokenizers"]))}
    if pre_tokenizer.get("prepend_scheme") == "first":
        return {**pre_tokenizer, "prepend_scheme": "never"}
    return pre_tokenizer
