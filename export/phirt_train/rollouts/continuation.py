"""Continuations of a text, drawn with seeds: what a model writes on that has read texts, and learnt no turns.

Each continuation is a function of the bundle, the beginning, the settings and the seed alone: every one is
drawn on an engine of its own. Knows the runtime. Knows nothing of where beginnings come from, or of reviews.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence

import numpy as np

import phirt
from phirt.generate.sampling import GenerationConfig, TokenSampler
from phirt.generate.sequence import Prompt
from phirt_train.rollouts.sampler import Request, Sample

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


class ContinuationSampler:
    """Goes on with the text of a request's last turn, as with a text of the training data. What comes behind
    the last sentence that is whole is left out of a continuation that is cut; without one it stays as it is.
    """

    def __init__(self, model: phirt.Model, config: GenerationConfig) -> None:
        self._model, self._config = model, config
        facts = repr(("continued", model.manifest.fingerprint, dataclasses.replace(config, seed=None)))
        self.identity = hashlib.sha256(facts.encode()).hexdigest()

    def sample(self, request: Request, seeds: Sequence[int]) -> list[Sample]:
        """See `phirt_train.rollouts.sampler.Sampler`."""
        manifest, tokenizer = self._model.manifest, self._model.generator.tokenizer
        tokens = manifest.tokens
        # In rows of texts each stands behind the token that ended the one before.
        before = [tokens.bos if tokens.bos in tokens.eos else tokens.eos[0]]
        ids = [*before, *tokenizer.encode_content(request.messages[-1].content)]
        if len(ids) >= manifest.geometry.context:  # no room for a word
            return [Sample("", is_cut=True) for _ in seeds]
        return [self._drawn(ids, seed) for seed in seeds]

    def _drawn(self, ids: Sequence[int], seed: int) -> Sample:
        manifest, generator = self._model.manifest, self._model.generator
        config = dataclasses.replace(self._config, seed=seed)
        steps = generator.new_engine().generate(
            Prompt(np.array(ids, np.int64)),
            TokenSampler(config, manifest.geometry.vocab_size, list(ids), manifest.placeholders),
            max_new_tokens=config.max_new_tokens,
            eos=manifest.tokens.eos,
        )
        drawn: list[int] = []
        while True:
            try:
                drawn.append(next(steps))
            except StopIteration as end:
                text = generator.tokenizer.decode(drawn)
                return Sample(text) if end.value == "stop" else whole_sentences(text)


def whole_sentences(text: str) -> Sample:
    """A text that was cut, up to the end of its last whole sentence; as it is, and cut, where it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    # A sign at the very end may have been cut in the middle of what it is part of, such as 3.5.
    ends = [end for end in ends if end < len(text)]
    return Sample(text[: ends[-1]]) if ends else Sample(text, is_cut=True)
