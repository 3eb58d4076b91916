"""`manifest.json` as bytes: read into a Manifest or an EmbedderManifest, written from one, whatever its
version.

Knows the format's name and its versions. What the values must be is said by `manifest` and `relations`. Keys
that a version does not define are ignored, so that a producer may add notes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from phirt.bundle.manifest import (
    EMBEDDER_FORMAT,
    EMBEDDER_VERSION,
    FORMAT,
    MANIFEST_NAME,
    REMEDY,
    VERSION,
    EmbedderManifest,
    Manifest,
)
from phirt.bundle.relations import contradictions
from phirt.bundle.version_1 import upgrade
from phirt.errors import BundleError
from phirt.fields import Fields, parse_json, read_dataclass, write_dataclass

ACCEPTED_VERSIONS = (1, VERSION)
_ACCEPTED = {FORMAT: ACCEPTED_VERSIONS, EMBEDDER_FORMAT: (EMBEDDER_VERSION,)}
_OUTSIDE = ("folder", "fingerprint", "variant", "static")


def parse_manifest(raw: bytes, folder: Path) -> Manifest:
    """Validates the bytes of a manifest without looking at the files it lists. Raises BundleError, also for
    that of an embedding model.
    """
    manifest = parse_any(raw, folder)
    if isinstance(manifest, EmbedderManifest):
        raise BundleError(
            f"{folder} holds an embedding model, which makes vectors of texts and answers nothing; open it "
            "with phirt.Embedder"
        )
    return manifest


def parse_any(raw: bytes, folder: Path) -> Manifest | EmbedderManifest:
    """The same for bundles of either kind. Raises BundleError."""
    root = _fields(parse_json(raw, str(folder / MANIFEST_NAME), BundleError, REMEDY))
    form, version = root.raw("format"), root.raw("version")
    if not isinstance(form, str) or form not in _ACCEPTED:
        accepted = " or ".join(map(repr, _ACCEPTED))
        raise BundleError(
            f"{MANIFEST_NAME}: format is {root.shown('format')}, accepted: {accepted}; name a folder made by "
            "'phirt export'"
        )
    if type(version) is not int or version not in _ACCEPTED[form]:
        accepted = ", ".join(map(str, _ACCEPTED[form]))
        raise BundleError(
            f"{MANIFEST_NAME}: version {root.shown('version')} is not known, accepted: {accepted}; "
            "update phirt or export the bundle again"
        )
    fingerprint = hashlib.sha256(raw).hexdigest()
    manifest: Manifest | EmbedderManifest
    if form == EMBEDDER_FORMAT:
        manifest = read_dataclass(EmbedderManifest, root, folder=folder, fingerprint=fingerprint)
    else:
        root = _fields(upgrade(root)) if version == 1 else root
        outside = {"folder": folder, "fingerprint": fingerprint, "variant": None, "static": None}
        manifest = read_dataclass(Manifest, root, **outside)
    for contradiction in contradictions(manifest):
        raise root.refusal(contradiction)
    return manifest


def manifest_bytes(manifest: Manifest | EmbedderManifest) -> bytes:
    """The bytes that `parse_manifest` reads back as `manifest`; their sha256 is the fingerprint then.

    Raises BundleError for a manifest that it would refuse.
    """
    is_embedder = isinstance(manifest, EmbedderManifest)
    form, version = (EMBEDDER_FORMAT, EMBEDDER_VERSION) if is_embedder else (FORMAT, VERSION)
    document = {"format": form, "version": version, **write_dataclass(manifest, leave_out=_OUTSIDE)}
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        raw = text.encode()
    except (TypeError, ValueError) as error:  # no JSON value, a number that is none, a lone surrogate
        raise BundleError(f"the manifest cannot be written: {error}") from error
    parse_any(raw, manifest.folder)
    return raw


def _fields(document: object) -> Fields:
    return Fields(document, MANIFEST_NAME, BundleError, REMEDY)
