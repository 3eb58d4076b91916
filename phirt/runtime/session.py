"""The only place that creates inference sessions: graphs checked, prepared and opened on a device, encoders
on demand.

Knows onnxruntime. Knows nothing of tokens, media or conversations.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from phirt.bundle.files import require_intact
from phirt.bundle.graph_check import check_graph
from phirt.bundle.manifest import CPU_TARGET, Contents, GraphSpec, Manifest
from phirt.errors import BundleError, PhirtError, ProviderError, first_line, not_enough_memory, out_of_memory
from phirt.runtime import kernels, prepared, system
from phirt.runtime.device import CPU, Device
from phirt.runtime.native_calls import native_calls
from phirt.runtime.ort import ort
from phirt.runtime.placement import RECORD, Placement, placement_of
from phirt.runtime.tensor import Tensor

_EXTERNAL_BYTES = 1024  # smaller initializers stay in the prepared graph itself
_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "uint16": "tensor(uint16)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "bool": "tensor(bool)",
}

_log = logging.getLogger("phirt.session")

Array = npt.NDArray[Any]
OnPrepare = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """How graphs are executed: on `device`.

    `repeated` says that runs follow each other quickly, as decode steps do: worker threads then stay awake
    for a moment, and memory for what the graph computes is kept between runs. `on_prepare` is called with a
    graph's name and the bytes of its weights before it is prepared for this machine, which takes seconds and
    is done once (see `prepared`). `strict` says that a graph which the device does not run as a whole is an
    error.
    """

    device: Device = CPU
    repeated: bool = True
    on_prepare: OnPrepare | None = None
    strict: bool = False


class Session:
    """One opened graph. Errors of onnxruntime leave it as BundleError."""

    def __init__(self, manifest: Contents, graph: str, config: SessionConfig) -> None:
        self.spec = manifest.graphs[graph]
        self.graph = graph
        # Weights are mapped at least; a library that gets no memory may end the process.
        if not system.has_address_space(sum(manifest.files[name].size for name in self.spec.data)):
            raise not_enough_memory(f"open the {graph} graph")
        config = _config_for(manifest, self.spec, config)
        self.device = config.device
        self._run_options = ort.RunOptions()
        # Its default. onnxruntime's wrapper asks for it at every run, and where it is not set an exception is
        # thrown and caught each time: 0.1 ms, a tenth of a small model's step.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        native_calls.register(self)
        if not config.repeated:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        begin = time.perf_counter()
        where = "the bundle, with phirt-kernels"
        self._session = self._open_with_kernels(manifest, config)
        if self._session is None:
            where = "the cache of prepared graphs"
            self._session = self._open_prepared(manifest, config)
        if self._session is None:
            where = "the bundle"
            path = manifest.path(self.spec.file)
            try:
                self._session = _open(path, config)
            except PhirtError:
                raise
            except Exception as error:  # onnxruntime's types derive from Exception alone
                raise out_of_memory(error, f"open the {graph} graph") or _not_opened(
                    path, graph, config, error
                ) from error
            _check_provider(self._session, config.device)
            _check_interface(self._session, self.spec)
            self._release_weights(manifest)
        if _log.isEnabledFor(logging.DEBUG):
            how = f"{config.device.provider}, {config.device.thread_count} threads"
            seconds = time.perf_counter() - begin
            _log.debug("the %s graph is open after %.2f s, from %s: %s", graph, seconds, where, how)

    def _open_with_kernels(self, manifest: Contents, config: SessionConfig) -> Any:
        """The graph with phirt-kernels' operators, which pack weights as fast as they are read: nothing of it
        is kept in the cache. None where the package is not used, or computes nothing of this graph. Raises
        BundleError where the graph holds what none may hold.
        """
        library = kernels.library() if config.device.is_cpu else None
        if library is None:
            return None
        check_graph(manifest, self.spec)
        path = manifest.path(self.spec.file)
        try:
            graph = kernels.with_kernels(path.read_bytes())
            if graph is None:
                return None
            session = _open_in_memory(graph, library, path.parent, config)
            _check_interface(session, self.spec)
        except Exception as error:  # weights of another type, say; without them all is as before
            if lacking := out_of_memory(error, f"open the {self.graph} graph"):
                raise lacking from error
            _log.info("phirt-kernels does not open the %s graph: %s", self.graph, first_line(error))
            return None
        self._release_weights(manifest)
        return session

    def _release_weights(self, manifest: Contents) -> None:
        """Gives back the memory of weights as they were before they were folded and packed."""
        system.release_mapped_pages([manifest.path(name) for name in self.spec.data])
        system.trim_heap()

    def _open_prepared(self, manifest: Contents, config: SessionConfig) -> Any:
        """The graph with its weights mapped from the cache, where it is put first if need be; None if it
        cannot. Raises BundleError where the bundle's files are not those of its manifest, or its graph holds
        what none may hold.
        """
        entry = None
        if config.device.is_cpu:
            entry = prepared.find_entry(manifest, self.spec, f"onnxruntime {ort.__version__}")
        if entry is None or not entry.is_complete():
            check_graph(manifest, self.spec)
            if entry is not None and not entry.has_failed():
                _prepare(manifest, self.graph, config, entry)
        if entry is None or not entry.is_complete():
            return None
        try:
            session = _open_optimized(entry.model, config)
            _check_interface(session, self.spec)
        except Exception as error:  # a damaged entry: the bundle itself is the way that always works
            if lacking := out_of_memory(error, f"open the {self.graph} graph"):
                raise lacking from error
            _log.info("the prepared %s graph cannot be opened: %s", self.graph, first_line(error))
            entry.discard()
            check_graph(manifest, self.spec)
            return None
        system.release_mapped_pages([entry.data])
        system.trim_heap()
        return session

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """A zeroed buffer [a, b, positions, c] where the graph reads and writes it in place."""
        return self.device.allocate(shape, dtype, self._session)

    @property
    def placement(self) -> Placement | None:
        """Which provider runs which nodes; None on the CPU, which runs them all."""
        return None if self.device.is_cpu else placement_of(self._session)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs the graph on numpy inputs; returns all outputs in the graph's order."""
        try:
            with native_calls:
                return list(self._session.run(None, dict(inputs), self._run_options))
        except Exception as error:
            raise self._failure(error) from error

    def binding(self) -> Any:
        """A fresh onnxruntime IOBinding for `run_bound`."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        """Runs the graph on what `binding` holds."""
        try:
            with native_calls:
                self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise self._failure(error) from error

    def stop(self) -> None:
        """Has runs that are under way fail soon, and all later ones: the program ends."""
        self._run_options.terminate = True

    def _failure(self, error: Exception) -> PhirtError:
        return out_of_memory(error, f"run the {self.graph} graph") or BundleError(
            f"the {self.graph} graph failed while running: {first_line(error)}; run 'phirt verify' on the "
            "bundle"
        )


def _config_for(manifest: Contents, spec: GraphSpec, config: SessionConfig) -> SessionConfig:
    """How a graph is run: those that a variant has for the CPU beside the provider, there; those of one size
    as a whole on the provider, or not at all.
    """
    if not isinstance(manifest, Manifest) or manifest.variant is None:
        return config
    if spec.target == CPU_TARGET:
        return dataclasses.replace(config, device=Device.cpu(config.device.threads))
    # The CPU runs them, too, where it is what was asked for.
    return dataclasses.replace(config, strict=manifest.static is not None and not config.device.is_cpu)


def _not_opened(path: Path, graph: str, config: SessionConfig, error: Exception) -> PhirtError:
    """Why a graph was not opened, with what can be done about it."""
    if config.strict:
        return ProviderError(
            f"{config.device.provider} does not run the {graph} graph as a whole: {first_line(error)}; "
            "leave --provider out to run on the CPU, or export the bundle again for this device"
        )
    if "multiple hard links" in str(error):  # as package managers make them that share files with a cache
        return BundleError(
            f"{path} cannot be opened: its weights are hard links, and onnxruntime reads none that have "
            "several names; copy the bundle's folder, or install phirt with copies (uv: --link-mode copy)"
        )
    return BundleError(
        f"{path} cannot be opened as the {graph} graph: {first_line(error)}; the graph or its weights are "
        "damaged: run 'phirt verify', then export the bundle again or fetch a fresh copy"
    )


def _check_provider(session: Any, device: Device) -> None:
    """onnxruntime goes on with the CPU where a provider's libraries or drivers are missing, and only warns.
    Raises ProviderError.
    """
    if device.provider not in session.get_providers():
        raise ProviderError(
            f"execution provider {device.provider} cannot be used here: its libraries or its driver are "
            "missing or do not fit; install what its onnxruntime package names, or leave --provider out"
        )


def _check_interface(session: Any, spec: GraphSpec) -> None:
    """The graph must have the inputs and outputs that the manifest promises. Raises BundleError."""
    found = {node.name: node.type for node in session.get_inputs()}
    promised = {tensor.name: _ORT_TYPES[tensor.dtype] for tensor in spec.inputs}
    if found != promised:
        differing = sorted(set(found.items()) ^ set(promised.items()))[:4]
        raise BundleError(
            f"{spec.file}: inputs differ from the manifest: {differing}; export the bundle again"
        )
    outputs = {node.name for node in session.get_outputs()}
    missing = sorted({tensor.name for tensor in spec.outputs} - outputs)
    if missing:
        raise BundleError(f"{spec.file}: outputs {missing} are missing; export the bundle again")


def _open(path: Path, config: SessionConfig) -> Any:
    options = _options(config)
    if not config.device.is_cpu:
        options.add_session_config_entry(RECORD, "1")
    with native_calls:
        return config.device.open(str(path), options, strict=config.strict)


def _open_optimized(path: Path, config: SessionConfig) -> Any:
    """A graph that was optimized when it was written."""
    options = _options(config)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # onnxruntime packs all the same, to find the packed weights by their content; on all cores, for which it
    # holds all unpacked ones to the end.
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    with native_calls:
        return config.device.open(str(path), options, strict=config.strict)


def _open_in_memory(graph: bytes, library: Path, weights: Path, config: SessionConfig) -> Any:
    """A graph with operators of a library, whose weights lie in a folder."""
    options = _options(config)
    options.register_custom_ops_library(str(library))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    with native_calls:
        return config.device.open(graph, options, strict=config.strict)


def _options(config: SessionConfig) -> Any:
    return config.device.session_options(spinning=config.repeated)


def _prepare(manifest: Contents, graph: str, config: SessionConfig, entry: prepared.Entry) -> None:
    """Opens the graph once such that onnxruntime writes it, optimized and packed, into the entry; logs why
    where that fails.

    What is kept is read from then on in the bundle's place, so it must be the bundle's: raises BundleError
    where a file has not the manifest's sha256.
    """
    spec = manifest.graphs[graph]
    try:
        with entry.staged() as folder:
            if folder is None:
                return
            if config.on_prepare is not None:
                config.on_prepare(graph, entry.weights)
            require_intact(manifest.folder, (spec.file, *spec.data))
            _write_prepared(manifest.path(spec.file), config, folder)
    except BundleError:
        raise
    except Exception as error:  # a full disk, a folder that cannot be renamed: all as before
        _log.warning("the %s graph was not prepared for this machine: %s", graph, first_line(error))
        _log.debug("where preparing it failed", exc_info=error)
    finally:
        system.trim_heap()


def _write_prepared(path: Path, config: SessionConfig, folder: Path) -> None:
    options = _options(config)
    options.optimized_model_filepath = str(folder / prepared.MODEL_NAME)
    for key, value in (
        ("optimized_model_external_initializers_file_name", prepared.DATA_NAME),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    with native_calls:
        ort.InferenceSession(str(path), sess_options=options, providers=list(config.device.providers))


class LazySession:
    """A graph that is opened on first use and can be released; safe to use from several threads."""

    def __init__(self, manifest: Contents, graph: str, config: SessionConfig) -> None:
        self._manifest = manifest
        self._graph = graph
        self._config = config
        self._session: Session | None = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the graph is in memory now."""
        return self._session is not None

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Opens the graph if needed and runs it; returns all outputs in the graph's order."""
        with self._lock:
            if self._session is None:
                self._session = Session(self._manifest, self._graph, self._config)
            session = self._session
        return session.run(inputs)

    @property
    def placement(self) -> Placement | None:
        """As `Session.placement`; None where the graph is not open."""
        session = self._session
        return None if session is None else session.placement

    def release(self) -> None:
        """Gives the graph's memory back; the next run opens it again."""
        with self._lock:
            self._session = None
