"""Vectors of texts: an embedding model, from its bundle.

Knows tokenizing, batches and the one graph, which pools and scales by itself. Knows nothing of conversations;
what a tokenizer makes of the names of its special tokens in a text is as the model was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import tokenizers

from phirt.annotations import has_surrogate
from phirt.bundle.files import load_embedder, require_intact
from phirt.bundle.manifest import EMBEDDER, EmbedderManifest
from phirt.errors import BundleError, ClosedError, ConfigError, out_of_memory
from phirt.runtime.device import Device
from phirt.runtime.session import OnPrepare, Session, SessionConfig

Vectors = npt.NDArray[np.float32]

_MAX_TOKENIZER_BYTES = 256 << 20
_BATCH_TOKENS = 2048  # of a run, padding included: memory stays small, and kernels have enough to do


class Embedder:
    """A loaded embedding model. Safe to use from many threads.

        with phirt.Embedder("my-bundle") as embedder:
            vectors = embedder.embed(["a gull over the sea", "a bird by the water"])

    `threads` and `on_prepare` are those of `phirt.load`; `verify` checks every file's sha256 before. Raises
    BundleError, ConfigError.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        threads: int | None = None,
        verify: bool = False,
        on_prepare: OnPrepare | None = None,
    ) -> None:
        self.manifest: EmbedderManifest = load_embedder(bundle)
        if verify:
            require_intact(bundle)
        self._tokenizer = _open_tokenizer(self.manifest)
        device = Device.named(None, threads)
        config = SessionConfig(device, repeated=False, on_prepare=on_prepare)
        self._session: Session | None = Session(self.manifest, EMBEDDER, config)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"{self.context} tokens of a text"
        return f"<phirt.Embedder {self.manifest.name!r}: {self.width} numbers a text; {state}>"

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.manifest.width

    @property
    def context(self) -> int:
        """Tokens of a text that are looked at, special ones included; the rest is cut off."""
        return self.manifest.context

    def embed(self, texts: str | Iterable[str], prompt: str | None = None) -> Vectors:
        """The vectors float32 [n, width] of these texts, in their order; of one text where one is given.

        `prompt` names one of the manifest's `prompts`, which is put before every text: what a model that
        tells questions from documents was trained with. Raises ConfigError, ClosedError.
        """
        before = self._prompt(prompt)
        wanted = [before + _clean(text) for text in ([texts] if isinstance(texts, str) else texts)]
        vectors = np.zeros((len(wanted), self.width), np.float32)
        if not wanted:
            return vectors
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(wanted)]
        for places in _batches([len(one) for one in ids]):
            vectors[places] = self._run([ids[place] for place in places])
        return vectors

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """How many tokens of each text are looked at, special ones included."""
        return [
            len(encoding.ids) for encoding in self._tokenizer.encode_batch([_clean(text) for text in texts])
        ]

    def close(self) -> None:
        """Gives all memory back; `embed` raises ClosedError from now on. May be called again."""
        self._session = None

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        session = self._session
        if session is None:
            raise ClosedError("the embedder is closed; open another one")
        longest = max(1, max(map(len, ids)))
        padded = np.full((len(ids), longest), self.manifest.pad, np.int64)
        mask = np.zeros_like(padded)
        for row, one in enumerate(ids):
            padded[row, : len(one)] = one
            mask[row, : len(one)] = 1
        (vectors,) = session.run({"input_ids": padded, "attention_mask": mask})
        return vectors

    def _prompt(self, name: str | None) -> str:
        prompts = self.manifest.prompts
        if name is None:
            return ""
        if name not in prompts:
            known = ", ".join(prompts) or "none"
            raise ConfigError(f"prompt {name!r:.80} is none of this model's; accepted: {known}")
        return prompts[name]


def _clean(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"a text is a {type(text).__name__}, accepted: strings")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if has_surrogate(text) else text


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that are run together: of like lengths, so that little is padded."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def _open_tokenizer(manifest: EmbedderManifest) -> tokenizers.Tokenizer:
    path = manifest.path(manifest.tokenizer)
    if manifest.files[manifest.tokenizer].size > _MAX_TOKENIZER_BYTES:
        raise BundleError(f"{path} is larger than {_MAX_TOKENIZER_BYTES} bytes; export the bundle again")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest.context)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and its panics are none
        raise out_of_memory(error, "read the tokenizer") or BundleError(
            f"{path} is not a usable tokenizer: {error}; export the bundle again"
        ) from error
    return tokenizer
