"""A model that is being trained, measured as `phirt eval` measures bundles: on tasks, by needles, and by
perplexity at a length. Nothing is exported.

Knows the reference model and the encoder of its text. The measures are phirt_quant's, so that a figure of a
stage and one of the bundle that comes of it are the same figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phirt_export.model_scorer import ModelScorer, evaluating
from phirt_export.reference import Model
from phirt_quant.examiner import TextForm
from phirt_quant.metrics import Estimate, estimate
from phirt_quant.needles import COUNT, DEPTHS, Retrieval, make_needles, seek_all
from phirt_quant.task_scores import read_examination, run
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.rope_fitness import Passage, long_passages, perplexity


def model_form(model: Model, encoder: ConversationEncoder, context: int | None = None) -> TextForm:
    """Text as a model has it; `context` is the positions that it is asked for, by default its own."""
    return TextForm(
        encode=lambda text: encoder.encode_documents([text])[0].token_ids[:-1],
        decode=encoder.decode,
        begin=(),
        bos=model.config.tokens.bos,
        context=model.config.decoder.rope.context if context is None else context,
    )


def task_scores(
    model: Model,
    encoder: ConversationEncoder,
    names: Sequence[str],
    data: Path,
    *,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """For each task the estimates of its measures; arguments as in `read_examination`.

    Raises:
        ConfigError: there is no such task, its file is missing, or it needs recordings.
    """
    form = model_form(model, encoder)
    scorer = ModelScorer(model, model.config.tokens.eos, form.context)
    found = {}
    for name in names:
        examination = read_examination(name, data, limit, shots, seed=seed)
        with evaluating(model):
            (outcomes,) = run(examination, form, [scorer])
        found[name] = {metric: estimate(metric, outcomes) for metric in examination.metrics}
    return found


def retrieval(
    model: Model,
    encoder: ConversationEncoder,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    depths: Sequence[float] = DEPTHS,
    count: int = COUNT,
    seed: int = 0,
) -> list[Retrieval]:
    """What becomes of passkeys hidden in texts of these lengths, which may be past the model's context."""
    form = model_form(model, encoder, max(lengths, default=1))
    needles = make_needles(form, texts, lengths, depths, count, seed)
    scorer = ModelScorer(model, model.config.tokens.eos, form.context)
    with evaluating(model):
        (found,) = seek_all([scorer], needles, form.context)
    return found


def perplexity_at(
    model: Model, encoder: ConversationEncoder, texts: Sequence[str], length: int, count: int = 5
) -> float:
    """The perplexity by token of the first `length` tokens of `count` texts that have as many.

    Raises:
        ConfigError: there are fewer texts so long.
    """
    ids = [encoded.token_ids[:-1] for encoded in encoder.encode_documents(texts)]
    return perplexity(model, long_passages(ids, length, count))


def needle_passages(
    model: Model,
    encoder: ConversationEncoder,
    texts: Sequence[str],
    length: int,
    *,
    depths: Sequence[float] = DEPTHS,
    count: int = COUNT,
    seed: int = 0,
) -> list[Passage]:
    """Passages for a search of rotary factors of which the passkeys alone are predicted."""
    form = model_form(model, encoder, length)
    needles = make_needles(form, texts, [length], depths, count, seed)
    return [Passage((*one.context_ids, *one.answer_ids), len(one.context_ids)) for one in needles]
