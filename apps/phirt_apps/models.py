"""The model that a command works with: by the name under which a user knows it or by its folder; loading it.

Knows folders, the names in the user's settings, and the runtime's `load`. Does not know commands.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from phirt.errors import BundleError, ConfigError

from .home import expand_home
from .output import Output, one_line, size
from .settings import EMBEDDED, load_settings

if TYPE_CHECKING:
    import phirt
    from phirt.runtime.device import Provider

# Up to this size every file is hashed before a bundle is used: about a fifth of a second. Larger ones: `phirt
# verify`.
_HASHED_BEFORE_USE = 256_000_000


def resolve(model: Path | None) -> Path | None:
    """The folder of a model that is given by its folder or its name; None is the embedded one.

    A folder that holds a bundle goes before a name. Raises BundleError for what is neither.
    """
    if model is None:
        return None
    from phirt.bundle.manifest import MANIFEST_NAME

    folder, name = expand_home(model), str(model)
    if (folder / MANIFEST_NAME).is_file():
        return folder
    if name == EMBEDDED:
        return None
    models = load_settings().models
    if name in models:
        registered = expand_home(models[name])
        if not registered.is_dir():
            raise BundleError(
                f"the model {name} is no longer at {registered}; 'phirt remove {name}' forgets it, 'phirt "
                "add' names it again"
            )
        return registered
    if folder.exists() or len(model.parts) > 1:
        return folder  # whoever reads it says what is wrong there
    known = ", ".join([EMBEDDED, *map(one_line, models)])
    raise BundleError(f"{one_line(name)} is not a folder, nor the name of a model; names: {known}")


def named_models() -> list[tuple[str, Path]]:
    """The models that have names, with their folders: the embedded one, then the user's by name."""
    from phirt.model import embedded_bundle

    models = load_settings().models
    return [(EMBEDDED, embedded_bundle()), *((name, expand_home(models[name])) for name in sorted(models))]


def bundle_folder(model: Path | None) -> Path:
    """The same, with the folder of the embedded bundle for None."""
    folder = resolve(model)
    if folder is not None:
        return folder
    from phirt.model import embedded_bundle

    return embedded_bundle()


def small_enough_to_hash(folder: Path | None) -> bool:
    """Whether checking every byte before use costs next to nothing. The embedded bundle (None) always is."""
    if folder is None:
        return True
    from phirt.bundle.files import load_any

    return sum(entry.size for entry in load_any(folder).files.values()) <= _HASHED_BEFORE_USE


def load(
    model: Path | None,
    out: Output,
    provider: str | None = None,
    threads: int | None = None,
    adapter: Path | None = None,
) -> phirt.Model:
    """The loaded model, with a spinner meanwhile. A small bundle is checked byte by byte before. `adapter` is
    the folder of a user's LoRA, which goes by the folder's name.
    """
    folder = resolve(model)
    with out.busy("loading the model"):
        return opened(folder, out.hint, provider, threads, adapter)


def opened(
    folder: Path | None,
    say: Callable[[str], None],
    provider: str | None = None,
    threads: int | None = None,
    adapter: Path | None = None,
) -> phirt.Model:
    """The model of a folder, None for the embedded one; else as `load`. `say` is told what takes long."""
    import phirt  # takes a moment

    return phirt.load(
        folder,
        providers=None if provider is None else [_provider(provider)],
        threads=threads,
        adapters=None if adapter is None else {_name_of(adapter): adapter},
        verify=small_enough_to_hash(folder),
        on_prepare=lambda graph, weights: say(
            f"preparing the {graph} graph for this machine, once ({size(weights)} of weights)"
        ),
    )


def _provider(text: str) -> Provider:
    """A provider as it is named on the command line: `qnn`, or `qnn:soc_model=57,htp_arch=75` with options of
    its own. Raises ConfigError.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return name
    options = {}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals):
            raise ConfigError(
                f"the provider's option {one_line(part)!r} is none; accepted: NAME, or "
                "NAME:KEY=VALUE,KEY=VALUE"
            )
        options[key.strip()] = value.strip()
    return name, options


def _name_of(folder: Path) -> str:
    """What an adapter is called after its folder."""
    name = folder.absolute().name
    return name if name.isprintable() and 0 < len(name) <= 200 else "adapter"
