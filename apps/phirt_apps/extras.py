"""What a plain install leaves out, and the line that installs it, from anywhere.

Knows the extras by what the installed package says of itself. Does not know commands.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from phirt.errors import PhirtError

# Packages of the extras by the names under which they are imported; the absence of any other module is a
# fault and not a user's choice.
_EXPORT = ("torch", "onnx_ir", "safetensors", "huggingface_hub", "httpx2")
_SERVE = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_EXTRAS = {
    **dict.fromkeys(_EXPORT, "export"),
    **dict.fromkeys(_SERVE, "serve"),
    "llguidance": "schema",
    "pypdfium2": "pdf",
    "PySide6": "desktop",
    "matplotlib": "plot",
    "ray": "scale",
}


class MissingExtraError(PhirtError):
    """A command needs packages that a plain install leaves out."""


def install_line(extra: str) -> str:
    """A command that installs what the extra names. It names the packages: phirt itself may have come from a
    clone or a file, where `phirt[extra]` would be looked for in vain.
    """
    import importlib.metadata  # takes a moment

    try:
        requirements = importlib.metadata.requires("phirt") or []
    except importlib.metadata.PackageNotFoundError:  # a copy of the files, which nobody has installed
        return f'pip install ".[{extra}]" in a clone of phirt'
    return f"pip install {' '.join(_packages(extra, requirements))}"


def _packages(extra: str, requirements: list[str]) -> list[str]:
    """The packages of an extra, in quotes; those of the extras that it contains too."""
    wanted = []
    for requirement in requirements:
        package, _, marker = (part.strip() for part in requirement.partition(";"))
        if not re.search(rf"extra *== *['\"]{re.escape(extra)}['\"]", marker):
            continue
        inner = re.fullmatch(r"phirt\[(.*)\]", package)
        if inner is None:
            wanted.append(f'"{package}"')
        for contained in inner[1].split(",") if inner else ():
            wanted += _packages(contained, requirements)
    return wanted


@contextlib.contextmanager
def needs_extra(command: str) -> Iterator[None]:
    """Around the imports of a command that needs an extra: a package that is missing raises
    MissingExtraError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(
            f"'phirt {command}' needs {error.name}, which is missing; run: {install_line(extra)}"
        ) from error
