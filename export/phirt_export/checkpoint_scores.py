"""A checkpoint as a reference for `phirt_quant.evaluation`: the reference model in float32.

Knows what memory the model takes and how media reach it. The processors' constants come from the bundle that
is compared with it; weights, encoders and decoder are the checkpoint's.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from phirt.bundle.adapters import choose_rule, encoder_name, projector_index
from phirt.bundle.manifest import Manifest, Modality, Rule
from phirt.encoders.encoder import open_encoders
from phirt.errors import BundleError, ConfigError
from phirt.generate.sequence import Prompt
from phirt.prompt.messages import Inputs
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS
from phirt_export.chat_files import TOKENIZER_NAME, pruned_tokenizer
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.model_scorer import ModelScorer
from phirt_export.model_weights import LAYERS, load_model, streamed_model
from phirt_export.reference import Model, ModelConfig
from phirt_export.reference.model import Route
from phirt_quant.evaluation import STEPS, Case, Logits
from phirt_quant.examiner import TextForm
from phirt_quant.likelihood import leading_ids

# Activations of a prompt with media, a few rows of logits, and what torch itself takes.
_ROOM = 1 << 30
# A model up to this size is held as a whole.
_HELD_BYTES = 2 << 30
_KINDS = {"phi4mm_image", "phi4mm_audio"}  # of the reference model's towers


class CheckpointReference:
    """The reference model of a checkpoint. Nothing is cached between steps, so a long answer is slow.

    Raises:
        ConfigError: the checkpoint cannot be read, is not the bundle's, or needs more memory than there is
            (said before any weight is read).
    """

    def __init__(self, checkpoint: Path, manifest: Manifest, base: Path | None = None) -> None:
        opened = Checkpoint(checkpoint, base)
        own = pruned_tokenizer(opened.folder, manifest.geometry.vocab_size)
        tokenizer = hashlib.sha256(own).hexdigest()
        if tokenizer != manifest.files[manifest.tokenizer].sha256:
            raise ConfigError(
                f"{checkpoint} has another tokenizer than the bundle {manifest.name!r}, so their predictions "
                "cannot be compared; name the checkpoint that the bundle was exported from"
            )
        self._checkpoint, self._bundle_bytes = opened, sum(entry.size for entry in manifest.files.values())
        self._is_whole = _float_bytes(opened.config) <= _HELD_BYTES
        needed = needed_memory(opened.config) if self._is_whole else streamed_memory(opened.config)
        require_memory(opened, needed + self._bundle_bytes)
        self._manifest, self._encoders = manifest, open_encoders(manifest)
        if strange := sorted({spec.kind for spec in manifest.encoders.values()} - _KINDS):
            raise ConfigError(
                f"encoders of the kind {', '.join(strange)} are not computed from a checkpoint; compare with "
                "an unquantized bundle: phirt export CHECKPOINT -o REFERENCE --bits 32"
            )
        self._model = load_model(opened) if self._is_whole else streamed_model(opened)
        self._scorer = ModelScorer(self._model, manifest.tokens.eos, manifest.geometry.context)

    def whole_model(self) -> Model:
        """The reference model with all of its weights in memory. Raises ConfigError where that is too
        little.
        """
        if self._is_whole:
            return self._model
        require_memory(self._checkpoint, needed_memory(self._checkpoint.config) + self._bundle_bytes)
        return load_model(self._checkpoint)

    def score(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """Logits along a text; see `phirt_quant.evaluation.Scorer`."""
        return self._scorer.score(ids, first)

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        """The greedy answer; see `phirt_quant.evaluation.Scorer`."""
        return self._scorer.answer(ids, draft)

    def reply(self, case: Case, prompt: Prompt) -> Iterator[int]:
        """The greedy answer to a turn with media; see `phirt_quant.evaluation.Listener`."""
        route: Route = prompt.adapter.name  # type: ignore[assignment]
        with torch.no_grad():
            media = self._features(case)
        yield from self._scorer.continued([int(i) for i in prompt.ids], media, route)

    def follow(self, case: Case, prompt: Prompt) -> Iterator[Logits]:
        """Logits along an answer; see `phirt_quant.evaluation.Reference`."""
        route: Route = prompt.adapter.name  # type: ignore[assignment]
        token_ids = [int(i) for i in prompt.ids]
        with torch.no_grad():
            media = self._features(case)
            for _ in range(STEPS):
                (logits,) = self._scorer.logits(token_ids, media, route, len(token_ids) - 1)
                yield logits
                token_ids.append(int(logits.argmax()))

    def _features(self, case: Case) -> Tensor | None:
        """Rows for all placeholders of the case, pictures before clips."""
        sources: list[tuple[Modality, Any]] = [("image", source) for source in case.images]
        sources += [("audio", source) for source in case.audio]
        rule = choose_rule(self._manifest, {modality for modality, _ in sources})
        rows = [self._rows(modality, source, rule) for modality, source in sources]
        return torch.cat(rows) if rows else None

    def _rows(self, modality: Modality, source: Any, rule: Rule) -> Tensor:
        name = encoder_name(self._manifest, modality)
        projector = self._manifest.encoders[name].projectors[projector_index(self._manifest, name, rule)]
        prepared = self._encoders[name].prepare(source, self._manifest.limits, "high")
        return media_rows(self._model, modality, prepared.make_inputs(), projector)


def open_alone(folder: Path) -> tuple[TextForm, ModelScorer]:
    """A checkpoint's text and its model in float32, without a bundle: for whatever is asked by ids alone.

    Raises:
        ConfigError: the checkpoint cannot be read, its tokenizer serves no runtime, or it needs more memory
            than there is.
    """
    opened = Checkpoint(folder)
    config, tokens = opened.config, opened.config.tokens
    is_whole = _float_bytes(config) <= _HELD_BYTES
    require_memory(opened, needed_memory(config) if is_whole else streamed_memory(config))
    with tempfile.TemporaryDirectory(prefix="phirt-") as place:
        path = Path(place) / TOKENIZER_NAME
        path.write_bytes(pruned_tokenizer(opened.folder, config.decoder.vocab_size))
        try:
            tokenizer = Tokenizer(path, config.decoder.vocab_size, VISIBLE_TOKENS)
        except BundleError as error:
            raise ConfigError(f"the tokenizer of {folder} cannot be used: {error}") from error
        begin = tuple(leading_ids(path))
    form = TextForm(
        encode=tokenizer.encode_content,
        decode=lambda ids: tokenizer.decode(list(ids)),
        begin=begin,
        bos=tokens.bos,
        context=config.decoder.rope.context,
    )
    model = load_model(opened) if is_whole else streamed_model(opened)
    return form, ModelScorer(model, tokens.eos, form.context)


def media_rows(model: Model, modality: Modality, inputs: Inputs, projector: str) -> Tensor:
    """Features [rows, hidden] of what an encoder of the towers' kinds has prepared; recordings take a
    projector.
    """
    if modality == "audio":
        rows: Tensor = model.audio_embed(torch.from_numpy(inputs["audio_embeds"]), projector)[0]
        return rows
    grid = math.isqrt(inputs["patch_mask"].shape[1])
    mask = torch.from_numpy(inputs["patch_mask"]).view(-1, grid, grid)
    (h, w), (u, v) = inputs["crop_grid"].tolist(), inputs["feature_grid"].tolist()
    features: Tensor = model.image_embed(torch.from_numpy(inputs["pixel_values"]), mask, (h, w), (u, v))
    return features


def require_memory(checkpoint: Checkpoint, needed: int) -> None:
    """Raise ConfigError unless so many bytes, for the reference model and a bundle, are there."""
    there = available_memory()
    if needed > there:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} in float32 beside the bundle needs about "
            f"{needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are available; close other programs, "
            "or compare with an unquantized bundle, which is read from disk as it is needed: phirt export "
            "CHECKPOINT -o REFERENCE --bits 32"
        )


def needed_memory(config: ModelConfig) -> int:
    """Bytes of the float32 model, its largest tensor once more, and room to work."""
    return _float_bytes(config) + 4 * max(_sizes(config).values()) + _ROOM


def streamed_memory(config: ModelConfig) -> int:
    """The same where one layer is held at a time."""
    layers = sum(4 * size for name, size in _sizes(config).items() if name.startswith(LAYERS))
    return needed_memory(config) - layers + layers // config.decoder.num_layers


def _float_bytes(config: ModelConfig) -> int:
    """Bytes of all weights in float32."""
    return 4 * sum(_sizes(config).values())


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in expected_shapes(config).items()}


def _left_in_container() -> float:
    """Bytes below the limit of the control group (Linux, version 2); infinite without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current")
        )
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf


def available_memory() -> int:
    """Bytes that programs can still take."""
    return int(min(psutil.virtual_memory().available, _left_in_container()))
