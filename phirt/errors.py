"""The errors a user can meet. Each message names the cause, what was accepted, and the remedy.

Knows nothing of the rest of the package, so that every module can raise these; and how libraries word that
memory is lacking.
"""

import errno


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


class SchemaError(PhirtError):
    """A schema cannot be kept, or an answer is not the JSON that it should be."""


class ConversationError(PhirtError):
    """A saved conversation cannot be written or restored."""


class OutOfMemoryError(PhirtError, MemoryError):
    """There is not enough memory for what was asked."""


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


# What C++, the C library, the loader of shared objects, threads and onnxruntime's allocators say.
_LACKING = (
    "bad_alloc", "bad allocation", "cannot allocate memory", "failed to allocate", "unable to allocate",
    "out of memory", "not enough memory", "insufficient memory", "failed to map segment",
    "can't start new thread", "pthread_create failed",
)  # fmt: skip
_WINDOWS = (8, 14, 1455)  # ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line: onnxruntime's have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def out_of_memory(error: BaseException, doing: str = "go on") -> OutOfMemoryError | None:
    """The error to raise in the place of `error`, where that, or what it came from, tells that memory is
    lacking; None where it tells something else. `doing` completes "not enough memory to …".
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, OutOfMemoryError):
            return cause
        if _lacks_memory(cause):
            return not_enough_memory(doing)
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def not_enough_memory(doing: str) -> OutOfMemoryError:
    """The error for "not enough memory to …", with its remedy."""
    return OutOfMemoryError(
        f"not enough memory to {doing}: close other programs, give this one more, or use a smaller model or "
        "smaller input"
    )


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and (
        error.errno == errno.ENOMEM or getattr(error, "winerror", None) in _WINDOWS
    ):
        return True
    if isinstance(error, PhirtError):  # its text holds names that anybody may have chosen
        return False
    text = str(error).lower()
    return any(words in text for words in _LACKING)
