"""Keeps an answer to a grammar: a logits processor that lets only those tokens through that it allows.

Knows tokens by their bytes, and llguidance, which does the parsing. Knows nothing of schemas or of engines.
What a grammar allows is asked once for each token of the answer, so nothing that it forbids is ever chosen,
be it drafted or not.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phirt.errors import ConfigError, SchemaError, out_of_memory
from phirt.generate.grammar import Grammar
from phirt.generate.sampling import Logits
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 32  # compiled grammars of one model
_STACK_BYTES = 16 << 20  # for the compiler, which follows references by recursion
_stack_size = threading.Lock()  # that of new threads is the process's; held while it is another
_MAX_SHOWN = 200
_DRAWN = re.compile(r"\d* *\|")
_WORDINGS = (
    (re.compile(r"Unimplemented keys: \[(.*)\].*"), r"it uses \1, which cannot be checked token by token"),
    (re.compile(r"oneOf constraints are not supported.*"), "it has a oneOf of which several may fit at once"),
    (re.compile(r"Unknown format: (.*)"), r"the format \1 is not known"),
    (re.compile(r"regex parse error: "), "a pattern is none: "),
)


class Constraint:
    """A grammar during one answer: a logits processor that knows what was said so far."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, aliases: dict[int, int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._aliases = aliases  # of the first token alone
        self._consumed = 0

    def __call__(self, logits: Logits, _: Sequence[int]) -> Logits:
        """The logits, with -inf for every token that the grammar does not allow after those taken."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_health()
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocab_size).astype(bool)
        if self._consumed == 0:
            for token, plain in self._aliases.items():
                allowed[token] |= allowed[plain]
        logits[~allowed] = -np.inf
        return logits

    def take(self, token: int) -> None:
        """Notes a token of the answer. Raises SchemaError where the grammar does not allow it."""
        if self._consumed == 0:
            token = self._aliases.get(token, token)
        self._consumed += 1
        self._matcher.consume_token(token)
        self._require_health()

    @property
    def is_complete(self) -> bool:
        """Whether the answer fulfils the grammar, and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _require_health(self) -> None:
        if self._matcher.is_error():
            raise SchemaError(
                f"the answer cannot go on under its schema: {_one_line(self._matcher.get_error())}; use a "
                "simpler one"
            )


class Constraints:
    """Makes the constraints of one model. The table of its tokens is built when the first is asked for, and
    what was compiled lately is kept. Safe to use from any thread.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = tuple(eos)
        self._lock = threading.Lock()
        self._table: LLTokenizer | None = None
        self._aliases: dict[int, int] = {}
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def of(self, grammar: Grammar) -> Constraint:
        """The grammar for one answer. Raises SchemaError where it cannot be kept, ConfigError where
        llguidance is not installed.
        """
        with self._lock:
            if self._table is None:
                self._build_table()
            matcher = self._compiled.pop(grammar, None)
            table = self._table
        assert table is not None
        if matcher is None:
            matcher = _compile(table, grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy(), self._vocab_size, self._aliases)

    def clear(self) -> None:
        """Gives back the memory of the table and of what was compiled."""
        with self._lock:
            self._table = None
            self._compiled.clear()

    def _build_table(self) -> None:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ModuleNotFoundError as error:
            raise ConfigError(
                "a schema needs the package llguidance (phirt's extra `schema`): pip install llguidance"
            ) from error
        vocabulary = _Vocabulary(self._tokenizer, self._vocab_size, self._eos)
        self._table = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=list(self._eos))
        if self._tokenizer.leading_space:
            self._aliases = vocabulary.without_leading_space()


class _Vocabulary:
    """The tokens as llguidance wants them described: attributes with its names, and a way to encode."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Sequence[int]) -> None:
        self.eos_token_id = eos[0]
        self.bos_token_id = None
        # What is special, or marks something, is no text, whatever its name; other added tokens are.
        self.special_token_ids = [
            token
            for token, control in tokenizer.control_tokens.items()
            if control.special or control.name in VISIBLE_TOKENS
        ]
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        for token in self.special_token_ids:
            self.tokens[token] = tokenizer.name_of(token).encode()
        self._encode = tokenizer.encode_content
        special = set(self.special_token_ids)
        self._ids = {data: token for token, data in enumerate(self.tokens) if data and token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, data: bytes | str) -> list[int]:
        """Ids that stand for exactly these bytes: how what must come next is said in the model's own tokens.

        Nothing may be raised here, where native code calls.
        """
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        ids = self._encode(raw.decode("utf-8", "replace"))
        if b"".join(self.tokens[token] for token in ids) == raw:
            return ids
        return self._greedy(raw)  # a tokenizer that adds a space, or maps characters

    def without_leading_space(self) -> dict[int, int]:
        """Tokens that begin with a space, and those that are the same without it."""
        spaced = ((token, data.removeprefix(b" ")) for data, token in self._ids.items() if data[:1] == b" ")
        return {token: self._ids[rest] for token, rest in spaced if rest in self._ids}

    def _greedy(self, raw: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(raw):
            for length in range(min(self._longest, len(raw) - at), 0, -1):
                token = self._ids.get(raw[at : at + length])
                if token is not None:
                    break
            else:
                break
            ids.append(token)
            at += length
        return ids


def _compile(table: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """The compiled grammar. Raises SchemaError."""
    from llguidance import LLMatcher

    made: list[LLMatcher] = []
    failed: list[BaseException] = []

    def compile_there() -> None:
        try:
            made.append(LLMatcher(table, grammar.document, log_level=0))
        except BaseException as error:  # also what the library's panics become
            failed.append(error)

    _run_with_a_deep_stack(compile_there)
    if failed:
        raise out_of_memory(failed[0], "compile the schema") or SchemaError(
            f"the schema cannot be compiled: {_one_line(str(failed[0]))}; use a simpler one"
        ) from failed[0]
    if made[0].is_error():
        raise SchemaError(
            f"the schema cannot be kept: {_one_line(made[0].get_error())}; leave that out, or say it in "
            "another way"
        )
    return made[0]


def _run_with_a_deep_stack(work: Any) -> None:
    """Runs it in a thread whose stack is large everywhere; those of some systems have half a megabyte."""
    thread = threading.Thread(target=work, name="phirt-grammar")
    with _stack_size:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()


def _one_line(message: str) -> str:
    """What the library says, without its drawings and its state."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines()]
    text = " ".join(line for line in lines if line.strip("^ ") and not _DRAWN.match(line))
    for theirs, ours in _WORDINGS:
        text = theirs.sub(ours, text)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
