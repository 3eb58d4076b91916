"""Faster products of quantized weights and faster attention on the CPU, where the package phirt-kernels is
installed: its operators take the place of onnxruntime's in a graph that is about to be opened. The bundle
stays as it is.

Knows where the package's library is, and has graphs rewritten for it. Knows nothing of how its operators
compute, nor which nodes they take; nothing of sessions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
from pathlib import Path

VARIABLE = "PHIRT_KERNELS"  # "off", or the instruction set that is to be used
_OFF, _PLAIN = "off", "generic"
_PACKAGE = "phirt_kernels"
_INTERFACE = 3  # of the library: its operators, their inputs and attributes

_log = logging.getLogger("phirt.kernels")


@functools.cache
def library() -> Path | None:
    """The library of operators; None where it is not installed, switched off, or no faster on this CPU, which
    is logged.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == _OFF or importlib.util.find_spec(_PACKAGE) is None:
        return None
    path: Path | str = _PACKAGE
    try:
        path = Path(importlib.import_module(_PACKAGE).library_path())
        found, interface = _instructions_of(path), _interface_of(path)
    except (ImportError, OSError, AttributeError) as error:
        _log.warning("phirt-kernels is not used: %s cannot be loaded: %s", path, error)
        return None
    if interface != _INTERFACE:
        _log.warning("phirt-kernels is not used: %s is of another version than phirt; install it again", path)
        return None
    if found == _PLAIN:
        asked = f"{VARIABLE} is {_PLAIN!r}" if wanted == _PLAIN else "it has no instructions for this CPU"
        _log.warning("phirt-kernels is not used: %s", asked)
        return None
    if wanted not in ("", found):
        _log.warning("%s is %r, which this CPU has not; phirt-kernels uses %s", VARIABLE, wanted, found)
    _log.debug("phirt-kernels computes with %s", found)
    return path


def instructions() -> str | None:
    """The instruction set that the library computes with; None where there is no library to be used."""
    path = library()
    return None if path is None else _instructions_of(path)


def _instructions_of(path: Path) -> str:
    named = ctypes.CDLL(str(path)).phirt_kernels_name
    named.restype = ctypes.c_char_p
    name: bytes = named()
    return name.decode()


def _interface_of(path: Path) -> int:
    """0 for a library that is older than this number."""
    try:
        return int(ctypes.CDLL(str(path)).phirt_kernels_interface())
    except AttributeError:
        return 0


def with_kernels(graph: bytes) -> bytes | None:
    """The graph with phirt-kernels' operators in the place of onnxruntime's; None where there is none that it
    could take, or where a part is damaged that the check of graphs does not read. The graph has been checked.
    """
    # Only where the package is used: every start would take longer.
    from phirt.runtime.editable_graph import Model
    from phirt.runtime.kernel_nodes import DOMAIN, take_nodes
    from phirt.runtime.projections import fuse_projections

    try:
        model = Model.read(graph)
    except ValueError as error:
        _log.warning("phirt-kernels is not used: a graph cannot be read: %s", error)
        return None
    if not sum(take_nodes(one) for one in model.graphs):
        return None
    fuse_projections(model)
    model.add_domain(DOMAIN)
    return model.written()
