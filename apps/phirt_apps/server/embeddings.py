"""POST /v1/embeddings: vectors of texts.

Knows the shapes of that request and its answer. The embedder makes the vectors.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from phirt.embedder import Vectors
from phirt.fields import Length, Range

from .chat_request import read_body_as
from .endpoint import Exchange
from .errors import ApiError, BadRequestError, stopping
from .jobs import Emit
from .serving import Serving

_BATCH = 64  # texts between two looks at whether somebody still waits for them


@dataclass(frozen=True)
class EmbeddingsBody:
    """The fields of a request; `user` has no effect here."""

    input: str | Annotated[tuple[Any, ...], Length(1, 2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Range(1, 1 << 20)] | None = None
    user: Any = None

    @property
    def texts(self) -> list[str]:
        """The texts, each of which must be one."""
        texts = [self.input] if isinstance(self.input, str) else list(self.input)
        if not all(isinstance(text, str) for text in texts):
            raise BadRequestError("input holds what is no text; token ids are not taken", param="input")
        return texts


async def embeddings(serving: Serving, exchange: Exchange) -> None:
    """Answers the request."""
    embedder = serving.embedder
    if embedder is None:
        raise ApiError(
            404, "this server has no embedding model; start it with --embedder", code="model_not_found"
        )
    body: EmbeddingsBody = await exchange.parsed(lambda document: read_body_as(EmbeddingsBody, document))
    serving.require_model(body.model, embedder.manifest.name)
    if body.dimensions not in (None, embedder.width):
        raise BadRequestError(
            f"dimensions is {body.dimensions}, accepted: {embedder.width}, the model's own",
            param="dimensions",
        )
    texts = body.texts

    def work(emit: Emit[tuple[Vectors, int]], cancel: threading.Event) -> None:
        for begin in range(0, len(texts), _BATCH):
            if cancel.is_set():
                return
            some = texts[begin : begin + _BATCH]
            emit((embedder.embed(some), sum(embedder.count_tokens(some))))

    async with serving.job(exchange.receive, work) as job:
        vectors, tokens = [], 0
        async for some, count in job.events():
            vectors.append(some)
            tokens += count
    if serving.is_stopping:
        raise stopping()
    serving.metrics.prompt_tokens.inc(tokens)
    as_text = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector.tolist()}
        for index, vector in enumerate(np.concatenate(vectors))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    await exchange.reply({"object": "list", "data": data, "model": embedder.manifest.name, "usage": usage})


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
