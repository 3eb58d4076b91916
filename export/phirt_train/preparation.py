"""Runs the code that comes with a recipe and writes its data: once, into the run's folder.

A recipe that names a module beside itself (`[prepare] module = "prepare.py"`) runs it, as a Makefile does: it
has all the rights of whoever starts the training, so a stranger's recipe is read before it is run. A recipe
without that table runs nothing. The module has a frozen dataclass `Options`, which the recipe's options are
checked against, and a function `prepare(task, options)`, which writes JSON lines and media under
`task.output`. It imports its neighbours (`from .words import …`), and modules of the folders that the recipe
`uses` (`from ..nano.text import …`): what several recipes read is written by one piece of code.

Knows modules, folders and digests. Knows nothing of what is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import shutil
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError, PhirtError
from phirt.fields import Fields, parse_json, read_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_train.file_digests import FileDigests, opened_files
from phirt_train.progress import Progress, Report
from phirt_train.recipe import PreparationConfig, Recipe

STAGE = "preparation"
_MARK_NAME = "prepared.json"
_OWN = "0"  # the recipe's own folder as a package: no folder that is used has such a name
_log = logging.getLogger("phirt.train")


@dataclasses.dataclass(frozen=True)
class PreparationTask:
    """What the recipe's code is given: the user's data, where to write, and the recipe's seed."""

    data: Path
    output: Path
    seed: int
    report: Report

    def note(self, activity: str, step: int = 0, steps: int | None = None, unit: str = "records") -> None:
        """Report what is done."""
        self.report(Progress(STAGE, step, steps, unit, activity))


def prepare_data(
    recipe: Recipe,
    config: PreparationConfig,
    data: Path,
    output: Path,
    report: Report,
    known: FileDigests | None = None,
) -> str:
    """Write the recipe's data to `output`, unless the same code has written them there from the same options
    and the same files.

    Args:
        known: digests of the user's files that earlier starts have found.

    Returns:
        A digest of code, options and the files that the code has opened, which the data are a function of.

    Raises:
        ConfigError: there is no such module, its options are wrong, it fails, or `output` is of another
            recipe or other files.
    """
    known = known or FileDigests(output.parent / "files.json")
    used = {Path(name).name: recipe.folder / name for name in config.uses}
    module = _load(recipe.folder, config.module, used)
    place = f"{recipe.folder / config.module}: options"
    fields = Fields(dict(config.options), place, ConfigError, "correct the recipe", closed=True)
    options = read_dataclass(module.Options, fields)
    digest = _digest([recipe.folder, *used.values()], repr((recipe.seed, options)))
    mark = output / _MARK_NAME
    if mark.is_file():
        return _checked(mark, digest, data, known)
    report(Progress(STAGE, 0, None, "records", f"running {recipe.folder / config.module}"))
    staging = output.with_name(f"{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with opened_files(data) as opened:
        _run(module, PreparationTask(data, staging, recipe.seed, report), options)
    inputs = sorted(one for one in opened if _is_input(one, output.parent.absolute()))
    read = {one.relative_to(data.absolute()).as_posix(): known.of(one) for one in inputs}
    write_text(staging / mark.name, json.dumps({"digest": digest, "read": read}, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    staging.replace(output)
    return _joined(digest, read)


def _checked(mark: Path, digest: str, data: Path, known: FileDigests) -> str:
    """The digest of what was prepared before, where code, options and files are still the same."""
    output, remedy = mark.parent, f"train into another folder, or delete {mark.parent}"
    document = parse_json(mark.read_bytes(), str(mark), ConfigError, remedy)
    fields = Fields(document, str(mark), ConfigError, remedy)
    if fields.text("digest") != digest:
        raise ConfigError(f"{output} was written by another recipe, or other code of it; {remedy}")
    files = fields.child("read")
    read = {name: files.text(name) for name, _ in files.items()}
    for name, was in read.items():
        if not (data / name).is_file() or known.of(data / name) != was:
            raise ConfigError(f"{output} was written from another {name} than {data} holds; {remedy}")
    return _joined(digest, read)


def _is_input(path: Path, run_dir: Path) -> bool:
    """Whether a file that was opened is data: neither code nor of the run itself."""
    return path.is_file() and not path.is_relative_to(run_dir) and path.suffix not in (".py", ".pyc")


def _joined(digest: str, read: Mapping[str, str]) -> str:
    return hashlib.sha256(repr((digest, sorted(read.items()))).encode()).hexdigest()


def _run(module: Any, task: PreparationTask, options: Any) -> None:
    try:
        module.prepare(task, options)
    except PhirtError:
        raise
    except Exception as error:  # whatever code that is not ours may raise
        _log.debug("the recipe's code failed", exc_info=True)
        raise ConfigError(
            f"{module.__file__} failed: {_one_line(error)}; it is the recipe's own code"
        ) from error


def _load(folder: Path, name: str, used: Mapping[str, Path]) -> Any:
    """The module beside the recipe, in packages of its own that hold its neighbours, and those it uses."""
    if not (folder / name).is_file():
        raise ConfigError(f"the recipe names {name}, and {folder} holds no such file")
    for one in used.values():
        if not one.is_dir():
            raise ConfigError(f"the recipe uses {one}, which is no folder; correct 'uses'")
    package = f"phirt_recipe_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
    for loaded in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[loaded]  # the files may have changed since
    _make_package(package, None)
    for inner, place in {**used, _OWN: folder}.items():
        _make_package(f"{package}.{inner}", place)
    importlib.invalidate_caches()
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = importlib.import_module(f"{package}.{_OWN}.{Path(name).stem}")
    except Exception as error:  # whatever code that is not ours may raise
        raise ConfigError(f"{folder / name} cannot be loaded: {_one_line(error)}") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    for wanted in ("Options", "prepare"):
        if not hasattr(module, wanted):
            raise ConfigError(
                f"{folder / name} has no {wanted}; it needs a dataclass Options and a function prepare"
            )
    return module


def _make_package(name: str, folder: Path | None) -> None:
    """A package of the modules in a folder; what its own __init__.py says is not run."""
    made = types.ModuleType(name, "The code of a recipe.")
    made.__path__ = [] if folder is None else [str(folder.resolve())]
    sys.modules[name] = made


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _digest(folders: Iterable[Path], options: str) -> str:
    """Over the options and all Python files of the recipe's folder and of those that it uses."""
    digest = hashlib.sha256(options.encode())
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
