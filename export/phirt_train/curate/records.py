"""Texts of records: which of a record's fields make its text, and what is cleaned before anything looks at
it.

Knows fields and characters. Knows nothing of quality.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from phirt_train.curate.shards import Line, Shard, read

Part = Literal["all", "learnt", "held out"]
_HELD_OUT = 10  # one in so many
_FIELD = re.compile(r"\{(\w+)\}")
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Shards with records of one form.

    Attributes:
        name: what the data are called in mixtures and reports.
        template: the text, with names of fields in braces: "{text}", "Question: {question}\\nAnswer:
        {answer}". shards: where the records are.
    """

    name: str
    template: str
    shards: tuple[Shard, ...]
    part: Part = "all"


def text_of(record: Mapping[str, Any], template: str) -> str | None:
    """The record's text; None where it lacks a field that the template names, or that is no text.

    A list's texts stand on lines of their own, numbers are written out, and characters nobody reads are left
    out.
    """
    parts = {}
    for name in _FIELD.findall(template):
        value = _written(record.get(name))
        if value is None:
            return None
        parts[name] = value
    return cleaned(_FIELD.sub(lambda match: parts[match[1]], template))


def cleaned(text: str) -> str:
    """The text in composed characters, with plain line ends, without control characters or blanks at the ends
    of lines.
    """
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    return _TRAILING.sub("", unicodedata.normalize("NFC", text)).strip("\n")


def read_texts(source: TextSource, shard: Shard) -> Iterator[str]:
    """The texts of a shard that have any; lines that are no such records are left out."""
    for line in read(shard):
        text = usable_text(line, source.template)
        if not text:
            continue
        group = line.record.get("group")
        if source.part == "all" or held_out(group if isinstance(group, str) else text) == (
            source.part == "held out"
        ):
            yield text


def held_out(group: str) -> bool:
    """Whether what belongs to this group is measured on: records that name the same "group" stay together,
    others are by themselves. The same on every machine.
    """
    return hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[0] % _HELD_OUT == 0


def usable_text(line: Line, template: str) -> str | None:
    """The text of a line; None where there is none, empty where it is empty."""
    return None if line.fault else text_of(line.record, template)


def _written(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Sequence):
        parts = [_written(one) for one in value]
        return None if None in parts else "\n".join(part for part in parts if part is not None)
    return None
