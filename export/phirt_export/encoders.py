"""The encoders that a bundle gets beside its decoder: for each its manifest entry and how its graph is built;
and the rules by which adapters and projectors are chosen.

Knows plans and the manifest's words. Knows nothing of nodes: a plan brings its builder. A family whose
encoder is of another kind gives plans of its own (`Layout.encoders`); those of the reference model's towers
are here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from phirt.bundle.manifest import AdapterSpec, EncoderSpec, Modality, Rule
from phirt.encoders.fixed_image import FixedImageConstants
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.encoders.whisper_audio import WhisperConstants
from phirt.fields import write_dataclass
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.lora import ADAPTER_IDS
from phirt_export.graphs.photo import build_photo
from phirt_export.graphs.speech import PROJECTORS, build_speech
from phirt_export.graphs.vision import build_vision
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.graphs.whisper import build_whisper
from phirt_export.narrow import narrow
from phirt_export.reference.config import (
    AudioConfig,
    ModelConfig,
    PhotoConfig,
    TokenConfig,
    VisionConfig,
    WhisperConfig,
)
from phirt_export.reference.whisper import MEL_FRAMES

# What a conversation takes with an image in it, else with a recording: the adapter of that name, where the
# model has it, and for recordings the projector of that name.
_CHOICES: Sequence[tuple[Modality, str]] = (("image", "vision"), ("audio", "speech"))

GraphBuilding = Callable[[WeightStore, int, WeightFormat], None]


@dataclasses.dataclass(frozen=True)
class EncoderPlan:
    """One encoder to be exported.

    Attributes:
        name: of the encoder, of its graph and of that graph's files.
        spec: the manifest's entry.
        build: appends the encoder to a store's graph; takes the decoder's width and the format of linears.
        shapes: the tensors of the checkpoint that it needs, where they are none of the reference model's.
    """

    name: str
    spec: EncoderSpec
    build: GraphBuilding
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def tower_plans(config: ModelConfig) -> tuple[EncoderPlan, ...]:
    """Plans for the towers that the reference model of this configuration has."""
    plans = []
    if config.vision is not None:
        plans.append(_vision_plan(config.vision, config.tokens))
    if config.audio is not None:
        plans.append(_speech_plan(config.audio, config.tokens))
    if config.photo is not None:
        plans.append(_photo_plan(config.photo, config.tokens))
    if config.whisper is not None:
        plans.append(_whisper_plan(config.whisper, config.tokens))
    return tuple(plans)


def photo_constants(config: PhotoConfig) -> FixedImageConstants:
    """How a picture is prepared for an EfficientNet-Lite tower."""
    mean, deviation = (127.0 / 255,) * 3, (128.0 / 255,) * 3
    return FixedImageConstants(config.size, config.num_tokens, mean, deviation)


def whisper_constants(config: WhisperConfig) -> WhisperConstants:
    """How a recording is prepared for a Whisper tower."""
    return WhisperConstants(config.num_mels, config.stacked * MEL_FRAMES, "none")


def _photo_plan(config: PhotoConfig, tokens: TokenConfig) -> EncoderPlan:
    assert tokens.image is not None, "a model with a photo tower has a placeholder for its features"
    constants = write_dataclass(photo_constants(config))
    spec = EncoderSpec("fixed_image", "image", "photo", tokens.image, ("image",), constants)
    return EncoderPlan("photo", spec, lambda store, width, form: build_photo(store, config, width, form))


def _whisper_plan(config: WhisperConfig, tokens: TokenConfig) -> EncoderPlan:
    assert tokens.audio is not None, "a model with a Whisper tower has a placeholder for its features"
    constants = write_dataclass(whisper_constants(config))
    spec = EncoderSpec("whisper_audio", "audio", "sound", tokens.audio, ("speech",), constants)
    return EncoderPlan("sound", spec, lambda store, width, form: build_whisper(store, config, width, form))


def _vision_plan(config: VisionConfig, tokens: TokenConfig) -> EncoderPlan:
    assert tokens.image is not None, "a model with a vision tower has a placeholder for its features"
    constants = write_dataclass(narrow(ImageConstants, config))
    spec = EncoderSpec("phi4mm_image", "image", "vision", tokens.image, ("image",), constants)
    return EncoderPlan("vision", spec, lambda store, width, form: build_vision(store, config, width, form))


def _speech_plan(config: AudioConfig, tokens: TokenConfig) -> EncoderPlan:
    assert tokens.audio is not None, "a model with an audio tower has a placeholder for its features"
    constants = write_dataclass(narrow(AudioConstants, config))
    spec = EncoderSpec("phi4mm_audio", "audio", "speech", tokens.audio, PROJECTORS, constants)
    return EncoderPlan("speech", spec, lambda store, width, form: build_speech(store, config, width, form))


def adapter_specs(config: ModelConfig, plans: Sequence[EncoderPlan]) -> dict[str, AdapterSpec]:
    """The adapters that a rule can pick, as the decoder graph numbers them."""
    used = {rule.adapter for rule in rules(config, plans)}
    return {name: AdapterSpec(ADAPTER_IDS[name]) for name in config.adapters if name in used}


def rules(config: ModelConfig, plans: Sequence[EncoderPlan]) -> tuple[Rule, ...]:
    """Which adapter a conversation takes, and which projectors: Phi-4-multimodal's rule, where an image
    decides before a recording does. A model without the adapter takes the base weights.
    """
    there = {plan.spec.modality for plan in plans}
    choices = [(modality, name) for modality, name in _CHOICES if modality in there]
    return (
        *(
            Rule((modality,), name if name in config.adapters else None, _projectors(plans, name))
            for modality, name in choices
        ),
        Rule((), None, {}),
    )


def _projectors(plans: Sequence[EncoderPlan], name: str) -> dict[str, str]:
    """The projector of this name for every encoder that has it among others."""
    several = [plan for plan in plans if len(plan.spec.projectors) > 1]
    return {plan.name: name for plan in several if name in plan.spec.projectors}
