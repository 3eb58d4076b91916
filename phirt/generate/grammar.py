"""What an answer must look like: a JSON schema, a regular expression or a grammar, as data.

Knows how each of them is written down. Knows nothing of tokens, models or of how answers are kept to it;
`constraint` does that.
"""

from __future__ import annotations

import dataclasses
import json
import re

from phirt.errors import SchemaError
from phirt.generate.json_schema import JsonSchema, schema_text

_MAX_CHARACTERS = 256_000
_SCHEMA_NAME = "schema"
# A blank after a comma or a colon, or none, as the model likes; elsewhere blanks only cost tokens, and a weak
# model might write them for ever.
_SPACING = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The form of an answer: `Grammar.json_schema`, `Grammar.regex`, or rules in the syntax of Lark.

    `rules` begin at `start`. They are those that llguidance reads: strings, regular expressions between
    slashes, `<[7]>` for the token 7, and `@name` for one of `schemas`, which are JSON texts by name.
    """

    rules: str
    schemas: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rules, str):
            raise SchemaError(f"rules are a {type(self.rules).__name__}, accepted: a string in Lark's syntax")
        if len(self.rules) > _MAX_CHARACTERS:
            raise SchemaError(
                f"the grammar has {len(self.rules)} characters, accepted: at most {_MAX_CHARACTERS}"
            )

    @classmethod
    def json_schema(cls, document: JsonSchema) -> Grammar:
        """JSON that the schema accepts. Raises SchemaError for what is none."""
        return cls(f"start: @{_SCHEMA_NAME}", ((_SCHEMA_NAME, schema_text(document)),))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that the regular expression matches as a whole, in Rust's syntax: no look-around, no
        references back.
        """
        if not isinstance(pattern, str):
            raise SchemaError(f"the pattern is a {type(pattern).__name__}, accepted: a string")
        return cls(f"start: /{_between_slashes(pattern)}/")

    @classmethod
    def of(cls, schema: JsonSchema | Grammar | None) -> Grammar | None:
        """What a request gives as its schema. Raises SchemaError."""
        return schema if schema is None or isinstance(schema, Grammar) else cls.json_schema(schema)

    @property
    def document(self) -> str:
        """All of it, as llguidance takes it."""
        named = [
            {"name": name, "json_schema": {"x-guidance": _SPACING, **json.loads(text)}}
            for name, text in self.schemas
        ]
        return json.dumps({"grammars": [{"lark_grammar": self.rules}, *named]})


def _between_slashes(pattern: str) -> str:
    """The pattern as it stands in a rule, where a slash would end it, and a new line too."""
    escaped = re.sub(r"\\(.)|/", lambda found: found[0] if found[1] not in (None, "/") else r"\x2f", pattern)
    return escaped.replace("\n", r"\n")
