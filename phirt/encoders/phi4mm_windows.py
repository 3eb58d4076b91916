"""Recordings for a speech encoder whose graph takes one window of frames: the windows run one by one.

Knows the graph's contract. What a window is, is `windows`' matter, how frames are made `phi4mm_audio`'s.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from phirt.bundle.manifest import REMEDY, GraphSpec, Limits
from phirt.bundle.relations import misfit
from phirt.encoders.audio_file import AudioSource
from phirt.encoders.encoder import GraphRunner, ImageDetail, InputSpecs, Prepared
from phirt.encoders.phi4mm_audio import AudioConstants, count_tokens, prepare_audio
from phirt.encoders.windows import CONTEXT_TOKENS, windows
from phirt.errors import BundleError, MediaError
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs

_SECONDS_A_FRAME = 0.01


@dataclasses.dataclass(frozen=True)
class WindowConstants(AudioConstants):
    """Those of `phi4mm_audio`, and the tokens that one run of the graph makes: as many as attend to each
    other, or fewer, and then no clip may be longer.
    """

    tokens: Annotated[int, Range(1, 1 << 16)]

    def __post_init__(self) -> None:
        if self.tokens > self.window_tokens:
            raise ValueError(f"tokens {self.tokens} are more than the {self.window_tokens} of a window")


class Encoder:
    """A graph that takes one window and gives `audio_features.NAME` for each projector."""

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(WindowConstants, constants)
        spec = self.constants
        frames = (spec.tokens + 2 * CONTEXT_TOKENS) * spec.subsampling
        self.inputs: InputSpecs = {"audio_embeds": ("float32", (1, None, spec.num_mels))}
        taken = {one.name: one for one in graph.inputs}
        given = {one.name: one for one in graph.outputs}
        problems = [
            misfit(taken, "audio_embeds", ("float32",), (1, frames, spec.num_mels)),
            misfit(taken, "frames_mask", ("float32",), (1, 1, frames, 1)),
            misfit(taken, "key_bias", ("float32",), (1, 1, 1, spec.tokens)),
            *(misfit(given, name, ("float32",), (spec.tokens, hidden_size)) for name in given),
        ]
        for problem in problems:
            if problem is not None:
                raise BundleError(f"{constants.where}: {graph.file}: {problem}; {REMEDY}")

    def prepare(self, source: AudioSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """As for a graph of any size. Raises MediaError for a clip that is longer than the graph's window,
        where that is shorter than the model's own.
        """
        prepared = prepare_audio(source, self.constants, limits)
        spec = self.constants
        if spec.tokens < spec.window_tokens and prepared.num_tokens > spec.tokens:
            seconds = spec.tokens * spec.subsampling * _SECONDS_A_FRAME
            raise MediaError(
                f"the recording takes {prepared.num_tokens} tokens, and the graph for this device takes "
                f"clips of {seconds:.0f} s at most; cut it, or leave --provider out"
            )
        return prepared

    def count(self, inputs: Inputs) -> int:
        """The rows that one recording's frames make."""
        return count_tokens(inputs["audio_embeds"].shape[1], self.constants)

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]."""
        spec, frames = self.constants, np.asarray(inputs["audio_embeds"][0], np.float32)
        whole = spec.tokens == spec.window_tokens
        parts = [
            np.asarray(graph.run(window.inputs)[projector])[: window.tokens]
            for window in windows(frames, spec.tokens, spec.subsampling, whole=whole)
        ]
        return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
