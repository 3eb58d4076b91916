"""Runs multimodal models on onnxruntime: offline, fast, private.

    model = phirt.load()                      # the embedded bundle; or phirt.load("folder")
    chat = model.chat(system="…")
    for piece in chat.send("What is this?", images=["photo.jpg"]): print(piece, end="")

Importing this opens nothing and changes nothing: names are fetched from their modules when they are first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phirt.chat import Message
    from phirt.conversation import Chat, Reply, Result
    from phirt.engine import Progress
    from phirt.errors import (
        BundleError,
        ConfigError,
        ContextError,
        ConversationError,
        MediaError,
        PhirtError,
        ProviderError,
    )
    from phirt.model import Model, TokenCount, load
    from phirt.sampling import GenerationConfig
    from phirt.session import devices

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Chat",
    "ConfigError",
    "ContextError",
    "ConversationError",
    "GenerationConfig",
    "MediaError",
    "Message",
    "Model",
    "PhirtError",
    "Progress",
    "ProviderError",
    "Reply",
    "Result",
    "TokenCount",
    "devices",
    "load",
]

_HOMES = {
    "errors": (
        "BundleError",
        "ConfigError",
        "ContextError",
        "ConversationError",
        "MediaError",
        "PhirtError",
        "ProviderError",
    ),
    "chat": ("Message",),
    "conversation": ("Chat", "Reply", "Result"),
    "engine": ("Progress",),
    "model": ("Model", "TokenCount", "load"),
    "sampling": ("GenerationConfig",),
    "session": ("devices",),
}
_MODULES = (
    "adapters",
    "bundle_files",
    "chat",
    "engine",
    "errors",
    "manifest",
    "model",
    "prepacked",
    "processors",
    "sampling",
    "sequence",
    "session",
    "tokenizer",
)


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"phirt.{module}"), name)
    if name in _MODULES:
        return importlib.import_module(f"phirt.{name}")
    raise AttributeError(f"module 'phirt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
