"""One random published checkpoint run by transformers, by the torch reference, and by phirt's engine on its
unquantized bundle: greedy tokens must be equal and logits within 1e-4, at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints.write import write_checkpoint

from phirt.bundle.files import load_manifest
from phirt.generate.engine import Engine
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.reference import Model

STEPS = 64
TOLERANCE = 1e-4

Forward = Callable[[list[int]], np.ndarray]


def load_reference(folder: Path) -> Model:
    """The reference model with a checkpoint's weights, read through the layout."""
    opened = Checkpoint(folder)
    model = Model(opened.config).eval()
    state = {name: torch.from_numpy(opened.tensor(name)) for name in model.state_dict()}
    model.load_state_dict(state)
    return model


def load_published(folder: Path, attention: str = "eager") -> Any:
    """What transformers makes of the same folder, in float32; nothing may be missing or left over.

    With plain attention: its fused one makes the image encoder causal, see `test_phi4_multimodal`.
    """
    from transformers import AutoModelForCausalLM

    model, notes = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
        local_files_only=True,
    )
    found = {kind: sorted(names) for kind, names in notes.items() if names}
    assert not found, found
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Media:
    """A run of placeholders, its feature rows of the reference and of the bundle's encoders."""

    token: int
    reference_rows: np.ndarray
    bundle_rows: np.ndarray


@dataclasses.dataclass
class ThreeWays:
    """A checkpoint opened by all three. `published` are transformers' models by route."""

    folder: Path
    reference: Model
    bundle: Path
    published: Mapping[str, Any]

    def assert_equal(
        self,
        pieces: list[int | Media],
        route: str = "none",
        published_inputs: Mapping[str, torch.Tensor] | None = None,
    ) -> np.ndarray:
        """Greedy generation of 64 tokens agrees in all three; returns the reference's logits [64, vocab]."""
        prompt, media = _prompt(pieces, route)
        tokens, from_bundle = self._generate(prompt)
        ids = [*prompt.ids.tolist(), *tokens[:-1]]
        rows = torch.from_numpy(np.concatenate([m.reference_rows for m in media])) if media else None

        def reference(part: list[int]) -> np.ndarray:
            return self.reference(torch.tensor([part]), rows, route)[0].numpy()

        def published(part: list[int]) -> np.ndarray:
            return self.published[route](torch.tensor([part]), **(published_inputs or {})).logits[0].numpy()

        with torch.no_grad():
            expected, ours = (self._answer(forward, ids) for forward in (published, reference))
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(from_bundle, expected, atol=TOLERANCE, rtol=0)
        assert tokens == [self._choose(row) for row in expected] and len(tokens) == STEPS
        return ours

    def _answer(self, forward: Forward, ids: list[int]) -> np.ndarray:
        """Logits of the last 64 positions, each under the rotary regime of its own length."""
        rope = self.reference.config.decoder.rope
        logits = forward(ids)
        if rope.has_long_regime and len(ids) > rope.original_context:
            logits[: rope.original_context] = forward(ids[: rope.original_context])
        return logits[-STEPS:]

    def _generate(self, prompt: Prompt) -> tuple[list[int], np.ndarray]:
        manifest = load_manifest(self.bundle)
        engine = Engine(Session(manifest, "decoder", SessionConfig(Device.cpu(1))), manifest)
        seen: list[np.ndarray] = []

        def choose(logits: np.ndarray) -> int:
            seen.append(logits.copy())
            return self._choose(logits)

        tokens = list(engine.generate(prompt, choose, max_new_tokens=STEPS, eos=()))
        return tokens, np.stack(seen)

    def _choose(self, logits: np.ndarray) -> int:
        """The most likely token that is no media placeholder: those need features."""
        tokens = self.reference.config.tokens
        allowed = logits.copy()
        allowed[[token for token in (tokens.image, tokens.audio) if token is not None]] = -np.inf
        return int(allowed.argmax())


def open_three_ways(folder: Path, family: str, ranks: Path, **options: Any) -> ThreeWays:
    """Write a random checkpoint and open it in all three."""
    checkpoint = write_checkpoint(folder / "checkpoint", family, ranks, **options)
    bundle = export_bundle(checkpoint, folder / "bundle", bits=32)
    return ThreeWays(checkpoint, load_reference(checkpoint), bundle, {"none": load_published(checkpoint)})


def _prompt(pieces: list[int | Media], route: str) -> tuple[Prompt, list[Media]]:
    ids: list[int] = []
    spans = []
    for piece in pieces:
        if isinstance(piece, Media):
            spans.append(MediaSpan(len(ids), piece.bundle_rows, f"media {len(spans)}"))
            ids += [piece.token] * len(piece.bundle_rows)
        else:
            ids.append(piece)
    media = [piece for piece in pieces if isinstance(piece, Media)]
    return Prompt(np.array(ids, np.int64), tuple(spans), Adapter(route)), media
