"""How a model writes the calls of tools: as a grammar that forces one, and as the tokens of one made before.

Knows the marks that tokenizers have for it (Phi-4 and Granite, Qwen and Hermes, Mistral, Llama 3.1). Knows
nothing of what a tool does; answers are read by `prompt.tools`, which takes all of these forms.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from phirt.generate.grammar import Grammar
from phirt.generate.json_schema import JsonSchema, schema_text
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import CALL_CLOSE, CALL_OPEN

_ANY_ARGUMENTS: JsonSchema = {"type": "object"}


@dataclasses.dataclass(frozen=True)
class CallFormat:
    """What stands around calls: `opening` and `closing` are ids of control tokens, or None. `listed` models
    write all calls as one JSON list, others each between marks of its own, with `inner` text beside it.
    """

    opening: int | None = None
    closing: int | None = None
    listed: bool = True
    inner: str = ""
    arguments: str = "arguments"

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> CallFormat:
        """That of the model whose tokenizer this is; a bare JSON list where it has no marks."""

        def mark(name: str) -> int | None:
            token = tokenizer.id_of(name)
            return token if token in tokenizer.control_tokens else None

        if (opening := mark(CALL_OPEN)) is not None:
            return cls(opening, mark(CALL_CLOSE))
        if (opening := mark("<tool_call>")) is not None:
            return cls(opening, mark("</tool_call>"), listed=False, inner="\n")
        if (opening := mark("[TOOL_CALLS]")) is not None:
            return cls(opening)
        if (opening := mark("<|python_tag|>")) is not None:
            return cls(opening, listed=False, arguments="parameters")
        return cls()

    def grammar(self, tools: Mapping[str, JsonSchema | None], most: int) -> Grammar:
        """From one to `most` calls of these tools, by name with the schemas of their arguments; None is any
        object. Raises SchemaError for what is no schema.
        """
        assert tools and most >= 1
        names = list(tools)
        schemas = tuple(
            (f"arguments_{at}", schema_text(_ANY_ARGUMENTS if schema is None else schema))
            for at, schema in enumerate(tools.values())
        )
        rules = [
            f"start: {self._around('calls', most)}",
            f"call: {' | '.join(map(_rule, range(len(names))))}",
        ]
        if self.listed:
            more = f' ("," " "? call){{0,{most - 1}}}' if most > 1 else ""
            rules.append(f'calls: "[" call{more} "]"')
        for at, name in enumerate(names):
            before = json.dumps(f'{{"name": {json.dumps(name)}, "{self.arguments}": ')
            rules.append(f'{_rule(at)}: {before} @arguments_{at} "}}"')
        return Grammar("\n".join(rules), schemas)

    def ids(self, tokenizer: Tokenizer, text: str, calls: Sequence[tuple[str, Any]]) -> tuple[int, ...]:
        """The tokens of an answer with `text` and then calls, each a name with its arguments."""
        ids = tokenizer.encode_content(text) if text else []
        values = [{"name": name, self.arguments: arguments} for name, arguments in calls]
        written = [values] if self.listed else values
        for value in written:
            ids += [] if self.opening is None else [self.opening]
            ids += tokenizer.encode_content(
                f"{self.inner}{json.dumps(value, ensure_ascii=False)}{self.inner}"
            )
            ids += [] if self.closing is None else [self.closing]
        return tuple(ids)

    def _around(self, calls: str, most: int) -> str:
        opening = "" if self.opening is None else f"<[{self.opening}]> "
        closing = "" if self.closing is None else f" <[{self.closing}]>"
        if self.listed:
            return f"{opening}{calls}{closing}"
        inner = f"{json.dumps(self.inner)} " if self.inner else ""
        one = f"{opening}{inner}call{' ' + inner.strip() if inner else ''}{closing}"
        # Calls that no mark closes could not be told apart.
        return f"({one}){{1,{most}}}" if self.closing is not None and most > 1 else one


def _rule(at: int) -> str:
    return f"call_{at}"
