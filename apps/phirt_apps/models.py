"""The model that a command works with: where its bundle lies, and loading it.

Knows folders and the runtime's `load`. Does not know commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phirt.bundle.files import load_manifest

from .output import Output, size

if TYPE_CHECKING:
    import phirt

# Up to this size every file is hashed before a bundle is used: about a fifth of a second. Larger ones: `phirt
# verify`.
HASHED_BEFORE_USE = 256_000_000


def small_enough_to_hash(folder: Path | None) -> bool:
    """Whether checking every byte before use costs next to nothing. The embedded bundle (None) always is."""
    if folder is None:
        return True
    return sum(entry.size for entry in load_manifest(folder).files.values()) <= HASHED_BEFORE_USE


def bundle_folder(bundle: Path | None) -> Path:
    """The folder of a bundle; None is the embedded one."""
    if bundle is not None:
        return bundle
    from phirt.model import embedded_bundle

    return embedded_bundle()


def load(
    bundle: Path | None, out: Output, provider: str | None = None, threads: int | None = None
) -> phirt.Model:
    """The loaded model, with a spinner meanwhile. A small bundle is checked byte by byte before."""
    with out.busy("loading the model"):
        import phirt  # takes a moment

        return phirt.load(
            bundle,
            providers=None if provider is None else [provider],
            threads=threads,
            verify=small_enough_to_hash(bundle),
            on_prepare=lambda graph, weights: out.hint(
                f"preparing the {graph} graph for this machine, once ({size(weights)} of weights)"
            ),
        )
