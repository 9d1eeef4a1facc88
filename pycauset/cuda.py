"""The GPU as users see it: whether there is one, what it can do, whether it is used, and pinned memory.

Nothing here is needed to use a GPU: the solver finds it, measures it and decides. Every function works without a GPU,
without a driver and without CuPy.
"""

from __future__ import annotations

import math
import threading
import types
import warnings
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pycauset import config
from pycauset.errors import BackendError, DtypeError, MemoryLimitError, PycausetWarning, ShapeError
from pycauset.hardware import probe
from pycauset.hardware.probe import GpuInfo
from pycauset.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pycauset.hardware.profile import HardwareProfile

__all__ = [
    "CudaInfo",
    "MemoryInfo",
    "benchmark",
    "current_device",
    "disable",
    "enable",
    "force_backend",
    "info",
    "is_available",
    "memory_info",
    "pinned_empty",
    "set_pinning_budget",
]

_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class CudaInfo:
    """Whether the GPU is there and in use, and which it is; ``problem`` says in words why there is none."""

    available: bool
    enabled: bool
    backend: str
    device: GpuInfo | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of GPU, pinned and host memory: what there is, what pycauset may take and what it holds."""

    device_total: int
    device_free: int
    device_in_use: int
    pinned_budget: int
    pinned_in_use: int
    host_budget: int
    host_in_use: int


def is_available() -> bool:
    """Whether there is a GPU that CuPy can use. Never raises.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/no_gpu.json")):
    ...     is_available()
    False
    """
    return probe.gpu_info() is not None


def enable() -> None:
    """Let the solver choose the GPU where that is faster, as it does unless told otherwise.

    Raises
    ------
    BackendError
        If there is no GPU to use; the message says why.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/h200.json")):
    ...     enable()
    """
    _require_gpu("enable the GPU")
    _set_backend("auto")


def disable() -> None:
    """Compute on the CPU alone, until `enable`. The same as ``force_backend("cpu")``.

    Examples
    --------
    >>> disable()
    >>> info().enabled
    False
    >>> _ = force_backend("auto")
    """
    _set_backend("cpu")


def current_device() -> int | None:
    """Number of the CUDA device that work goes to, or None without a GPU.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/h200.json")):
    ...     current_device()
    0
    """
    if not is_available():
        return None
    cupy = probe.import_cupy()
    if cupy is None:  # a described machine
        return 0
    try:
        return int(cupy.cuda.runtime.getDevice())
    except Exception:  # CuPy is there, the described machine's GPU is not
        return 0


def info() -> CudaInfo:
    """What there is and whether it is used.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/laptop_8gb.json")):
    ...     info().device.compute_capability
    '8.9'
    """
    device = probe.gpu_info()
    backend = str(config.get("backend"))
    return CudaInfo(
        available=device is not None,
        enabled=device is not None and backend != "cpu",
        backend=backend,
        device=device,
        problem=probe.gpu_problem(),
    )


def benchmark(force: bool = False) -> HardwareProfile:
    """Return the measured hardware profile; measure if none is cached, or if ``force``.

    Takes less than 3 s with a GPU and 2 s without, start-up of CUDA aside. The result is kept in
    ``~/.pycauset/hardware_profile.json`` (see the setting ``home``) until the machine or a library changes.

    Parameters
    ----------
    force : bool
        Measure again even if a valid profile is cached.

    Warns
    -----
    PycausetWarning
        If the cached profile is unusable or the new one cannot be stored.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/h200.json")):
    ...     round(benchmark().gemm_rate("gpu", "float64", 8192) / 1e12)
    63
    """
    from pycauset.devices.audit import load_profile

    return load_profile(force=force)


def force_backend(backend: str) -> AbstractContextManager[None]:
    """Choose the device instead of the solver: ``"cpu"``, ``"gpu"``, or ``"auto"`` to leave it to the solver again.

    Called as a statement it holds for the whole process. In a ``with`` statement it holds inside the block, for this
    thread or task alone. It overrides the choice, never the checks: what does not fit is still refused.

    Parameters
    ----------
    backend : {"auto", "cpu", "gpu"}

    Raises
    ------
    ConfigError
        If it is none of the three.
    BackendError
        If it is "gpu" and there is none.

    Examples
    --------
    >>> with force_backend("cpu"):
    ...     info().backend
    'cpu'
    >>> info().backend
    'auto'
    """
    chosen = str(config.SETTINGS["backend"].parse(backend))
    if chosen == "gpu":
        _require_gpu("force the backend 'gpu'")
    return _Forced(chosen)


def set_pinning_budget(budget: int | str | None) -> None:
    """Limit the page-locked host memory that the whole process may hold.

    Memory that is pinned already stays pinned until it is released; new requests beyond the budget are denied and use
    ordinary memory, which is slower and gives the same results.

    Parameters
    ----------
    budget : int, str or None
        A whole number of bytes, or text such as "4GB". None goes back to the setting, by default
        ``min(RAM / 2, 0.8 × free RAM, 8 GB)``.

    Raises
    ------
    ConfigError
        If it is not a size, negative, or no whole number of bytes.

    Examples
    --------
    >>> set_pinning_budget("2GB")
    >>> memory_info().pinned_budget
    2000000000
    >>> set_pinning_budget(None)
    """
    from pycauset.governor import governor

    governor().set_pinning_budget(budget)


def memory_info() -> MemoryInfo:
    """Bytes of GPU, pinned and host memory now; the GPU's are 0 without one.

    Asking for the GPU's free memory starts CUDA, about a second the first time.

    Examples
    --------
    >>> memory = memory_info()
    >>> 0 <= memory.pinned_in_use and 0 < memory.host_budget
    True
    """
    from pycauset.governor import governor

    device = probe.gpu_memory()
    held = governor()
    return MemoryInfo(
        device_total=0 if device is None else device.total,
        device_free=0 if device is None else device.free,
        device_in_use=held.in_use("device"),
        pinned_budget=held.budget("pinned"),
        pinned_in_use=held.in_use("pinned"),
        host_budget=held.budget("host"),
        host_in_use=held.in_use("host"),
    )


def pinned_empty(shape: int | Sequence[int], dtype: npt.DTypeLike = np.float64) -> np.ndarray[Any, Any]:
    """Make an uninitialised array in page-locked memory, from and to which the GPU copies at full speed.

    The pinning budget is charged until the array and all views of it are gone. Without a GPU, or beyond the budget, the
    array lies in ordinary memory, and one warning says so.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : data-type
        Any without Python objects.

    Returns
    -------
    array : ndarray (shape)
        C-contiguous, aligned to 4096 bytes.

    Raises
    ------
    ShapeError
        If a size is negative or no integer.
    DtypeError
        If the dtype is unknown or holds Python objects.
    MemoryLimitError
        If there is not so much memory.

    Warns
    -----
    PycausetWarning
        If the memory is not pinned.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     a = pinned_empty((1000, 1000), "float32")
    >>> a.shape, a.ctypes.data % 4096
    ((1000, 1000), 0)
    """
    try:
        sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        sizes = tuple(size.__index__() for size in sizes)
    except (TypeError, AttributeError):
        raise ShapeError(f"shape {shape!r} is not an integer or a tuple of integers") from None
    if any(size < 0 for size in sizes):
        raise ShapeError(f"shape {sizes} has a negative size; sizes are 0 or more")
    try:
        element = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"{dtype!r} is no element type; use one such as 'float64'") from None
    if element.hasobject or element.itemsize == 0:
        raise DtypeError(f"elements of {element} cannot lie in pinned memory; use a type of fixed size without Python objects")
    nbytes = math.prod(sizes) * element.itemsize
    buffer = _pinned(nbytes) if nbytes else None
    if buffer is None:
        try:
            raw = np.empty(nbytes + _PAGE, np.uint8)
        except (MemoryError, ValueError, OverflowError):  # no memory, or more than an address can count
            raise MemoryLimitError(
                f"pinned_empty: an array of shape {sizes} of {element} takes {format_bytes(nbytes)} ({nbytes} bytes), and the "
                "system does not give so much memory; make it smaller"
            ) from None
        skip = -raw.ctypes.data % _PAGE
        buffer = raw[skip : skip + nbytes]
    return buffer.view(element).reshape(sizes)


def _pinned(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """``nbytes`` of pinned memory with a ticket that lives as long as they do; None, and a warning, if that cannot be."""
    from pycauset.governor import governor

    problem: str | None = None
    cupy = probe.import_cupy() if is_available() else None
    if cupy is None:
        problem = probe.gpu_problem() or "CuPy is not there"
        problem = f"there is no GPU that could use it: {problem}"
    else:
        rounded = -(-nbytes // _PAGE) * _PAGE
        ticket = governor().request("pinned", rounded, owner="pinned_empty")
        if ticket is None:
            budget, used = governor().budget("pinned"), governor().in_use("pinned")
            problem = (
                f"the pinning budget is {format_bytes(budget)} and {format_bytes(used)} of it are in use; "
                "raise it with set_pinning_budget, or release pinned arrays"
            )
        else:
            try:
                memory = cupy.cuda.PinnedMemory(rounded)
            except Exception as error:  # CUDA's own limits
                ticket.release()
                problem = f"CUDA refuses ({type(error).__name__}: {error})"
            else:
                # Views keep the memory alive, not the first array: the ticket has to end with the memory.
                weakref.finalize(memory, ticket.release).atexit = False
                pointer = cupy.cuda.PinnedMemoryPointer(memory, 0)
                return np.frombuffer(pointer, np.uint8, nbytes)
    warnings.warn(f"{format_bytes(nbytes)} are not pinned, copies will be slower: {problem}", PycausetWarning, stacklevel=3)
    return None


def _require_gpu(wish: str) -> None:
    problem = probe.gpu_problem()
    if problem is not None:
        raise BackendError(f"cannot {wish}: {problem}; force_backend('auto') leaves the choice to the solver")


_lock: Final = threading.Lock()
_calls: list[tuple[weakref.ref[_Forced], str]] = []
_before_calls: str | None = None  # None: what the environment or the default says


class _Forced:
    """A forced backend: of the process from the call on; of a block, and of nothing else, once it is entered.

    A call cannot know whether a ``with`` statement follows. So entering takes the call back, wherever it lies among
    those that other threads have made meanwhile, and sets the backend for the block.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._scopes: list[AbstractContextManager[None]] = []
        global _before_calls
        with _lock:
            while _calls and _calls[0][0]() is None:  # nobody can enter these any more
                _before_calls = _calls.pop(0)[1]
            if not _calls:
                _before_calls = _process_backend()
            _calls.append((weakref.ref(self), backend))
            config.configure(backend=backend)

    def __enter__(self) -> None:
        with _lock:
            for i, (call, _) in enumerate(_calls):
                if call() is self:
                    del _calls[i]
                    config.configure(backend=_calls[-1][1] if _calls else _before_calls)
                    break
        scope = config.settings(backend=self._backend)
        scope.__enter__()
        self._scopes.append(scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> bool | None:
        return self._scopes.pop().__exit__(kind, error, trace)


def _process_backend() -> str | None:
    """What the process was configured to outside of every ``with`` block, None if it never was."""
    return config._configured.get("backend")


def _set_backend(backend: str) -> None:
    with _lock:
        _calls.clear()
        config.configure(backend=backend)
