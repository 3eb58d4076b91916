"""The reference model in torch: what is compared with every ONNX graph, and the thing that is trained."""

from phirt_export.reference.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    PhotoConfig,
    RopeConfig,
    TokenConfig,
    VisionConfig,
    WhisperConfig,
    load_config,
)
from phirt_export.reference.model import ROUTES, Model, Route, initialize
from phirt_export.reference.packed import Documents

__all__ = [
    "ROUTES",
    "AdapterConfig",
    "AudioConfig",
    "DecoderConfig",
    "Documents",
    "Model",
    "ModelConfig",
    "PhotoConfig",
    "RopeConfig",
    "Route",
    "TokenConfig",
    "VisionConfig",
    "WhisperConfig",
    "initialize",
    "load_config",
]
