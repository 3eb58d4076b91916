"""Where and how graphs run: a device is an execution provider with its options, the type in which graphs made
for it take and give numbers, the memory of its buffers, its attention kernel and its threads.

Knows onnxruntime's providers and what it is told by session options and by the environment. Knows nothing of
bundles, tokens or media. Another device is another row of _TRAITS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from phirt.errors import ConfigError, ProviderError
from phirt.runtime import plugins
from phirt.runtime.cpus import default_threads, thread_count
from phirt.runtime.ort import load_cuda_libraries, ort
from phirt.runtime.tensor import DeviceTensor, HostTensor, Tensor, empty_array

CPU_PROVIDER = "CPUExecutionProvider"
_REMOTE_PROVIDERS = frozenset({"AzureExecutionProvider"})
_SUFFIX = "ExecutionProvider"
_MAX_THREADS = 1024
_LOG_NOTHING_BUT_FATAL = 4  # what goes wrong is raised; onnxruntime would print it a second time
_PLAIN_ATTENTION = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_OPENING = threading.Lock()

# A provider as a user names it: "cuda", or ("cuda", {"device_id": "1"}).
Provider = str | tuple[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class _Traits:
    """What holds for all devices of one provider: onnxruntime's word for their memory, the type of features
    and logits in graphs that are made for them, and whether their memory is a session's to give: an older
    onnxruntime that cannot copies keys and values at every run.
    """

    memory: str = "cpu"
    io_dtype: str = "float32"
    needs_session: bool = False


_TRAITS = {
    CPU_PROVIDER: _Traits(),
    "CUDAExecutionProvider": _Traits("cuda", "float16"),
    "DmlExecutionProvider": _Traits("dml", "float16"),
    "WebGpuExecutionProvider": _Traits("webgpu", "float16", needs_session=True),
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a session runs on. `providers` are onnxruntime's names with their options, in order of preference;
    what none of them can run, the CPU does. `threads` None takes those that pay here: see `cpus`.
    """

    providers: tuple[tuple[str, Mapping[str, str]], ...] = ((CPU_PROVIDER, {}),)
    threads: int | None = None

    @classmethod
    def cpu(cls, threads: int | None = None) -> Device:
        """The CPU."""
        return cls(threads=threads)

    @classmethod
    def named(
        cls, providers: Sequence[Provider] | Provider | None = None, threads: int | None = None
    ) -> Device:
        """The device that a user means; None is the CPU. Raises ProviderError naming what there is where a
        provider is not, ConfigError for senseless threads.
        """
        return cls(_resolve(providers), check_threads(threads))

    @property
    def provider(self) -> str:
        """The first provider."""
        return self.providers[0][0]

    @property
    def is_cpu(self) -> bool:
        """Whether all is run on the CPU, by onnxruntime's own kernels."""
        return all(name == CPU_PROVIDER for name, _ in self.providers)

    @property
    def io_dtype(self) -> str:
        """The type in which graphs for this device take features and give logits."""
        return self._traits.io_dtype

    @property
    def thread_count(self) -> int:
        """How many threads compute."""
        return thread_count(self.threads)

    @property
    def _traits(self) -> _Traits:
        return _TRAITS.get(self.provider, _Traits())

    @property
    def options(self) -> Mapping[str, str]:
        """The options of the first provider."""
        return self.providers[0][1]

    def open(self, path: str | bytes, options: Any, *, strict: bool = False) -> Any:
        """A session of onnxruntime on this device. With `strict` it is an error where the provider leaves a
        node to the CPU. Raises ProviderError, and what onnxruntime raises.
        """
        if strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        plugin = plugins.plugin_of(self.provider)
        if self.provider == "CUDAExecutionProvider":
            load_cuda_libraries()
        if plugin is None:
            return ort.InferenceSession(
                path, sess_options=options, providers=list(self.providers), enable_fallback=0
            )
        found = plugins.require_devices(plugin, self.options)
        options.add_provider_for_devices(
            [one.handle for one in found[:1]], plugins.provider_options(plugin, self.options, found[0].kind)
        )
        session = ort.InferenceSession(path, sess_options=options)
        session.disable_fallback()
        return session

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike, session: Any = None) -> Tensor:
        """A zeroed buffer [a, b, positions, c] where the device reads and writes it in place; of a session on
        it where one is given.
        """
        traits = self._traits
        by_session = hasattr(session, "create_ortvalue_from_shape_and_type")
        if traits.memory == "cpu" or (traits.needs_session and not by_session):
            return HostTensor(empty_array(shape, dtype))
        return DeviceTensor(shape, dtype, traits.memory, session if traits.needs_session else None)

    def session_options(self, *, spinning: bool) -> Any:
        """Options for a session; with `spinning` its threads stay awake for a moment between runs."""
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_NOTHING_BUT_FATAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = self.threads or default_threads() or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        return options

    @contextlib.contextmanager
    def attention_kernel(self, cache_dtype: str) -> Iterator[None]:
        """Sessions opened inside have the attention kernel that is fastest for keys and values of this type.

        Over int8 the plain kernel takes 0.65 to 0.9 of the time of the one in blocks, for one position behind
        1024 to 4096, and as long for many; it holds the scores of a chunk, 50 MB for 24 heads and 128
        positions behind 4096. onnxruntime asks the environment which to take. To be entered before other
        threads start, which may ask it something too; one graph at a time.
        """
        with _OPENING:  # what is set for one graph must not be seen by another
            if cache_dtype != "int8" or not self.is_cpu or _PLAIN_ATTENTION in os.environ:
                yield
                return
            os.environ[_PLAIN_ATTENTION] = "1"
            try:
                yield
            finally:
                os.environ.pop(_PLAIN_ATTENTION, None)


CPU = Device()


def devices() -> tuple[str, ...]:
    """The execution providers that are installed: those that come as plug-ins, then those of onnxruntime
    itself in its order of preference.

    Remote ones are left out: nothing leaves this machine.
    """
    own = (name for name in plugins.built_in() if name not in _REMOTE_PROVIDERS)
    return (*(one.provider for one in plugins.installed()), *own)


def check_threads(threads: int | None) -> int | None:
    """`threads` as given if it is None or a sensible count. Raises ConfigError."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(
            f"threads is {threads!r}, accepted: a whole number from 1 to {_MAX_THREADS}, or None"
        )
    if threads is not None and threads > _MAX_THREADS:
        raise ConfigError(f"threads is {threads}, accepted: at most {_MAX_THREADS}")
    return threads


def _resolve(named: Sequence[Provider] | Provider | None) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Full names with options: "cuda", "CUDA" and "CUDAExecutionProvider" are the same."""
    if named is None:
        return CPU.providers
    pairs = _pairs(named)
    available = {_short(name): name for name in devices()}
    if not pairs:
        raise ProviderError(f"no provider was named; available: {', '.join(available.values())}")
    unknown = [str(name) for name, _ in pairs if _short(name) not in available]
    if unknown:
        raise ProviderError(
            f"execution provider {', '.join(unknown)} is not available here; "
            f"available: {', '.join(available.values())}; 'phirt devices' tells what to install for others"
        )
    found: dict[str, Mapping[str, str]] = {}
    for name, options in pairs:
        found.setdefault(available[_short(name)], {key: str(value) for key, value in options.items()})
    return tuple(found.items())


def _pairs(named: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Names with their options, of one provider or of several."""
    if isinstance(named, str) or _has_options(named):
        named = (named,)
    return [item if _has_options(item) else (item, {}) for item in named]


def _has_options(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping)


def _short(name: object) -> str:
    return str(name).strip().removesuffix(_SUFFIX).lower()
