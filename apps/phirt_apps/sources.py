"""Which checkpoint a bundle was exported from: noted for this user when a bundle is made, and not in the
bundle, which may go to others.

Knows bundles by the digest of their manifests, and where their checkpoints lie. Knows nothing of weights.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from phirt.bundle.files import load_any
from phirt.bundle.manifest import MANIFEST_NAME
from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json
from phirt.runtime.atomic_file import write_text
from phirt.runtime.cache_folder import cache_folder

from .extras import needs_extra
from .fetching import local_checkpoint
from .home import expand_home
from .models import bundle_folder
from .output import Output, one_line
from .settings import load_settings

_KIND = "sources"
_MAX_BYTES = 1 << 16


def note_source(bundle: Path, checkpoint: str) -> None:
    """Note from which checkpoint a bundle was exported, where anything can be kept; made of another bundle,
    it has what that has.
    """
    if not (bundle / MANIFEST_NAME).is_file() or (path := _note(bundle)) is None:
        return
    place = Path(checkpoint).expanduser()
    source = str(place.absolute()) if place.exists() else checkpoint
    if (place / MANIFEST_NAME).is_file():
        try:
            source = source_of(place)
        except ConfigError:
            return
    with contextlib.suppress(OSError):  # a home that cannot be written to: whoever needs it names it
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"checkpoint": source}))


def checkpoint_of(model: str | None, out: Output) -> tuple[Path, str]:
    """The float checkpoint that is meant, as a folder of this machine and as it is called: what `model`
    names, or what the bundle that it names was exported from; without it, the embedded one.

    Raises:
        ConfigError: that is not known, or no longer there.
        HubError: it is a published one, of which no copy is kept.
    """
    named = None if model is None else expand_home(Path(model))
    is_bundle = named is None or (named / MANIFEST_NAME).is_file() or model in load_settings().models
    source = source_of(bundle_folder(None if model is None else Path(model))) if is_bundle else str(model)
    with needs_extra("train"):
        from phirt_export.hub import hub_id
    name = source if hub_id(source) else str(Path(source).expanduser().absolute())
    return local_checkpoint(source, out, revision=None, token=None, offline=True), name


def source_of(bundle: Path) -> str:
    """What a bundle was exported from. Raises ConfigError where nobody has noted it."""
    path = _note(bundle)
    if path is None or not path.is_file():
        raise ConfigError(
            f"it is not known from which checkpoint the model {one_line(load_any(bundle).name)} was "
            "exported; name that checkpoint with -m"
        )
    remedy = "name the checkpoint with -m"
    document = parse_json(path.read_bytes()[:_MAX_BYTES], str(path), ConfigError, remedy)
    source = Fields(document, str(path), ConfigError, remedy).text("checkpoint")
    if Path(source).is_absolute() and not Path(source).exists():
        raise ConfigError(
            f"the model was exported from {one_line(source)}, which is no longer there; {remedy}"
        )
    return source


def _note(bundle: Path) -> Path | None:
    try:
        folder = cache_folder(_KIND)
    except RuntimeError:  # this user has no home folder
        return None
    return None if folder is None else folder / f"{load_any(bundle).fingerprint}.json"
