"""The errors a user can meet. Each message names the cause, what was accepted, and the remedy.

Knows nothing of the rest of the package, so that every module can raise these.
"""


class PhirtError(Exception):
    """Base of all errors that phirt raises for a user's mistake or a damaged file."""


class BundleError(PhirtError):
    """A bundle is missing, damaged, or of a version this runtime does not read."""


class MediaError(PhirtError):
    """An image or a recording cannot be used: unreadable, out of limits, or empty."""


class ContextError(PhirtError):
    """The prompt needs more positions than the model's context has."""


class ConfigError(PhirtError):
    """A setting contradicts another or lies outside its range."""


class ConversationError(PhirtError):
    """A saved conversation cannot be written or restored."""


class ProviderError(PhirtError):
    """An execution provider was named that this machine does not offer."""


class AdapterError(PhirtError):
    """A LoRA adapter cannot be read, does not fit the bundle, or asks for more than can be added to it."""


class ChatBusyError(PhirtError):
    """A chat was asked for something while an earlier answer of it is still being made."""


class ClosedError(PhirtError):
    """A model was used after it was closed."""


class RequestCancelledError(PhirtError):
    """The caller's event was set before the answer began; nothing of the request stays."""
