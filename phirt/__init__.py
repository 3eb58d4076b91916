"""Runs multimodal models on onnxruntime: offline, fast, private.

    model = phirt.load()                      # the embedded bundle; or phirt.load("folder")
    chat = model.chat(system="…")
    for piece in chat.send("What is this?", images=["photo.jpg"]): print(piece, end="")

Importing this opens nothing and changes nothing: names are fetched from their modules when they are first
used. What happens is logged under the name `phirt`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phirt.chat.chat import Chat, Reply, Result
    from phirt.errors import (
        BundleError,
        ConfigError,
        ContextError,
        ConversationError,
        MediaError,
        PhirtError,
        ProviderError,
    )
    from phirt.generate.engine import Progress
    from phirt.generate.sampling import GenerationConfig
    from phirt.model import Model, TokenCount, load
    from phirt.prompt.messages import Message
    from phirt.runtime.session import devices

__version__ = "0.1.0"

logging.getLogger("phirt").addHandler(logging.NullHandler())  # whoever embeds phirt decides what is shown

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
    "prompt.messages": ("Message",),
    "chat.chat": ("Chat", "Reply", "Result"),
    "generate.engine": ("Progress",),
    "model": ("Model", "TokenCount", "load"),
    "generate.sampling": ("GenerationConfig",),
    "runtime.session": ("devices",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"phirt.{module}"), name)
    raise AttributeError(f"module 'phirt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
