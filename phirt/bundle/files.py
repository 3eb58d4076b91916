"""A bundle's files on disk: the manifest found and read, every listed file there, whole and inside the
folder.

Knows sizes, checksums and links. How a manifest is read is `document`'s matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from phirt.bundle.document import parse_any, parse_manifest
from phirt.bundle.manifest import MANIFEST_NAME, REMEDY, Contents, EmbedderManifest, FileEntry, Manifest
from phirt.errors import BundleError

_MAX_MANIFEST_BYTES = 4 << 20


def load_manifest(folder: str | Path) -> Manifest:
    """Reads and validates `folder`/manifest.json; checks that every listed file is there with its size.

    Checksums are left to `verify_bundle`, which reads every byte. Raises BundleError.
    """
    folder = Path(folder)
    manifest = parse_manifest(_read_manifest(folder), folder)
    _check_files(manifest)
    return manifest


def load_any(folder: str | Path) -> Manifest | EmbedderManifest:
    """The same for bundles of either kind: of models that answer, and of embedding models."""
    folder = Path(folder)
    manifest = parse_any(_read_manifest(folder), folder)
    _check_files(manifest)
    return manifest


def load_embedder(folder: str | Path) -> EmbedderManifest:
    """The same for embedding models. Raises BundleError for others."""
    manifest = load_any(folder)
    if not isinstance(manifest, EmbedderManifest):
        raise BundleError(
            f"{folder} holds a model that answers, and no embedding model; open it with phirt.load"
        )
    return manifest


def _check_files(manifest: Contents) -> None:
    for name, entry in manifest.files.items():
        _check_file(manifest.folder, name, entry)


def verify_bundle(folder: str | Path, files: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Checks every byte of a bundle, or of these of its files. Returns (file, "ok" or what is wrong) for
    each, in the manifest's order.

    A manifest that cannot be read, an unknown version or a path that leaves the bundle raises BundleError; a
    missing, truncated or altered file is reported in the list, so that all damage shows at once.
    """
    folder = Path(folder)
    manifest = parse_any(_read_manifest(folder), folder)
    report = []
    for name, entry in manifest.files.items():
        if files is not None and name not in files:
            continue
        _check_inside(folder, name)
        try:
            _check_file(folder, name, entry)
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            detail = "ok" if found == entry.sha256 else f"sha256 is {found}, the manifest says {entry.sha256}"
        except (BundleError, OSError) as error:
            detail = str(error)
        report.append((name, detail))
    return report


def require_intact(folder: str | Path, files: Collection[str] | None = None) -> None:
    """Raises BundleError naming every file, of all or of these, that differs from the manifest."""
    bad = [f"{name}: {detail}" for name, detail in verify_bundle(folder, files) if detail != "ok"]
    if bad:
        raise BundleError(f"the bundle {folder} is damaged: {'; '.join(bad)}; {REMEDY}")


def _read_manifest(folder: Path) -> bytes:
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a folder; accepted: a bundle, which is a folder with a {MANIFEST_NAME}"
        )
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{folder} has no {MANIFEST_NAME}; name a bundle made by 'phirt export'")
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions"
        ) from error
    if len(raw) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {_MAX_MANIFEST_BYTES} bytes; {REMEDY}")
    return raw


def _check_inside(folder: Path, name: str) -> None:
    root = folder.resolve()
    try:
        inside = (root / name).resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise BundleError(f"{name!r} is a link that leaves the bundle {folder}; put the file itself there")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    _check_inside(folder, name)
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing though the manifest lists it; {REMEDY}")
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(f"{path} has {size} bytes, the manifest says {entry.size}; {REMEDY}")
