"""One NVIDIA GPU through CuPy's low-level bindings: pinned slabs, four streams, events, cuBLAS on row-major tiles.

Uploads and downloads have a stream each, kernels two (the second of high priority), and every stream its own cuBLAS
handle where it needs one: a handle shared by streams may not be reproducible. Jobs are enqueued by the submitting thread
through raw pointers, without making ``cupy.ndarray`` objects, which keeps the host's share under 50 µs a task.

After a sticky CUDA error the context is lost: the device refuses further work in this process, and the solver uses the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from pycauset.devices.base import Device, Lanes, MemoryScope, Mode, Slab
from pycauset.devices.cublas import Cublas
from pycauset.devices.cuda_kernels import CudaKernels
from pycauset.devices.cuda_lane import CudaCompletion, CudaLane
from pycauset.devices.lanes import Failure, Span
from pycauset.devices.memory import PAGE, KeptMemory, anonymous_pages, pageable_slab
from pycauset.errors import DeviceError, MemoryLimitError, PycausetWarning
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, round_up
from pycauset.units import format_bytes

__all__ = ["WORKSPACE_BYTES", "CudaCompletion", "CudaLane", "CupyDevice", "TileView"]

#: cuBLAS takes a workspace for each handle: 32 MiB on Hopper, less elsewhere.
WORKSPACE_BYTES = 2 * (32 << 20)
_STICKY = {226, 700, 702, 710, *range(714, 720), 721, 810, 911}
_NOT_READY = 600
_NON_BLOCKING_STREAM = 1
_TO_DEVICE, _TO_HOST = 1, 2


class TileView(NamedTuple):
    """A row-major tile in device memory: address, shape, row distance in elements, dtype and its name (slow to ask NumPy for)."""

    address: int
    rows: int
    cols: int
    ld: int
    dtype: np.dtype[Any]
    kind: str


class CupyDevice(Device):
    """The current CUDA device. Creating one starts CUDA; make it through :func:`pycauset.devices.gpu`.

    Raises
    ------
    DeviceError
        If CUDA cannot start.
    """

    kind = "gpu"
    unified = False

    def __init__(self) -> None:
        from pycauset.hardware.probe import import_cupy

        cupy = import_cupy()
        if cupy is None:
            raise DeviceError("CuPy is not installed or cannot be imported; install pycauset[cuda12] or pycauset[cuda13]")
        from cupy_backends.cuda.api import runtime

        self.runtime: Any = runtime
        self._event_query = ctypes.CDLL("libcuda.so.1").cuEventQuery
        self._event_query.argtypes, self._event_query.restype = [ctypes.c_void_p], ctypes.c_int
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._stock: list[int] = []
        # Pinning takes as long as reading the same bytes from a disk.
        self._kept: KeptMemory[int] = KeptMemory(self._unpin)
        with self.checked("starting CUDA"):
            properties = runtime.getDeviceProperties(runtime.getDevice())
            name = properties["name"]
            self.name = name.decode() if isinstance(name, bytes) else str(name)
            self._streams: dict[str, int] = {
                "upload": runtime.streamCreateWithFlags(_NON_BLOCKING_STREAM),
                "download": runtime.streamCreateWithFlags(_NON_BLOCKING_STREAM),
                "compute": runtime.streamCreateWithPriority(_NON_BLOCKING_STREAM, 0),
                "panel": runtime.streamCreateWithPriority(_NON_BLOCKING_STREAM, -5),
            }
            self._handles = {stream: Cublas(self._streams[stream]) for stream in ("compute", "panel")}
        self._table = CudaKernels(self)
        self.kernels = self._table.table

    # -- errors ---------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether a sticky CUDA error has made the GPU unusable in this process."""
        return self._lost is not None

    def checked(self, doing: str) -> _Checked:
        """A context in which CUDA's errors become typed ones."""
        return _Checked(self, doing)

    def translate(self, error: BaseException, doing: str) -> BaseException:
        """The typed error for what CuPy raised while ``doing``."""
        if isinstance(error, (DeviceError, MemoryLimitError)) or not isinstance(error, Exception):
            return error
        status = getattr(error, "status", None)
        if status in _STICKY and type(error).__name__ == "CUDARuntimeError":
            self._lost = str(error)
        if status == 2 and type(error).__name__ == "CUDARuntimeError":
            return MemoryLimitError(
                f"the GPU ran out of memory while {doing}; lower gpu_memory=, or close what else uses the GPU"
            )
        if type(error).__name__ in ("CUDARuntimeError", "CublasError", "CusolverError", "CUDADriverError", "OutOfMemoryError"):
            ending = "; the GPU is not used again in this process: restart Python to get it back" if self.lost else ""
            typed = DeviceError(f"{doing} failed on {self.name}: {error}{ending}")
            typed.__cause__ = error
            return typed
        return error

    def query(self, event: int) -> bool:
        """Whether an event has happened. Through the driver: CuPy's ``eventQuery`` answers "not yet" with an exception."""
        status = self._event_query(event)
        if status == 0:
            return True
        if status == _NOT_READY:
            return False
        with self.checked("asking for progress"):
            self.runtime.check_status(status)
        return True

    # -- streams and events ---------------------------------------------------------------------------------------

    def take_event(self) -> int:
        """An event from the stock."""
        try:
            return self._stock.pop()
        except IndexError:
            event: int = self.runtime.eventCreateWithFlags(0)
            return event

    def give_event(self, event: int) -> None:
        """Back to the stock."""
        self._stock.append(event)

    def lanes(self, *, mode: Mode, failure: Failure, timeline: list[Span] | None, readers: int, writers: int) -> Lanes:
        if self.lost:
            raise DeviceError(f"{self.name} was lost to an earlier CUDA error ({self._lost}); restart Python to use it again")
        read, write = self.host_lanes(mode, failure, timeline, {"read": readers, "write": writers})

        def lane(name: str, stream: str) -> CudaLane:
            made = CudaLane(name, self, self._streams[stream], failure, timeline, sync=mode == "sync")
            made.blas = self._handles.get(stream)
            return made

        return Lanes(
            read,
            write,
            (lane("compute", "compute"), lane("compute", "panel")),
            upload=lane("upload", "upload"),
            download=lane("download", "download"),
        )

    def stream(self, name: str) -> int:
        """A stream of the device: "upload", "download", "compute" or "panel"."""
        return self._streams[name]

    def plain_lane(self, name: str) -> CudaLane:
        """A compute stream for work that is enqueued by hand."""
        lane = CudaLane(name, self, self._streams[name], Failure(), None, sync=False)
        lane.blas = self._handles[name]
        return lane

    def synchronize(self) -> None:
        if not self.lost:
            with self.checked("finishing"):
                for stream in self._streams.values():
                    self.runtime.streamSynchronize(stream)

    # -- memory ---------------------------------------------------------------------------------------------------

    def device_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        ticket = scope.require("device", nbytes, owner=owner)
        try:
            import cupy

            # CuPy's pool keeps the block for the next run, and gives it up when somebody runs out of memory.
            with self.checked(f"allocating {format_bytes(nbytes)} for {owner}"):
                block = [cupy.get_default_memory_pool().malloc(nbytes)]
        except BaseException:
            ticket.release()
            raise
        return Slab(nbytes, ticket, address=block[0].ptr, free=block.clear)

    def host_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        """Pinned memory, or ordinary memory with one warning when pinning is denied."""
        size = round_up(nbytes, PAGE)
        kept = self._kept.take(size, scope)
        if kept is not None:
            address, size, ticket = kept
            slab = Slab(size, ticket, array=_bytes_at(address, size))
            self._own(slab, address, scope)
            return slab
        ticket = scope.request("pinned", size, owner=owner)
        if ticket is None:
            _warn_unpinned(size, owner)
            return pageable_slab(size, scope, owner)
        return Slab(size, ticket, make=functools.partial(self._pin, scope, owner))

    def _pin(self, scope: MemoryScope, owner: str, slab: Slab) -> np.ndarray[Any, Any]:
        """Pin a slab's memory at its first use, or take ordinary memory when the driver refuses."""
        try:
            address = self.runtime.hostAlloc(slab.nbytes, 0)
        except Exception:  # degrades, whatever the driver's reason
            _warn_unpinned(slab.nbytes, owner)
            return anonymous_pages(slab.nbytes)
        self._own(slab, address, scope)
        return _bytes_at(address, slab.nbytes)

    def _own(self, slab: Slab, address: int, scope: MemoryScope) -> None:
        """When the slab is released its pinned memory is kept, ticket and all."""
        slab.address, slab.pinned = address, True
        self._kept.own(slab, address, scope)

    def _unpin(self, address: int) -> None:
        if not self.lost:
            self.runtime.freeHost(address)

    @property
    def kept_bytes(self) -> int:
        """Bytes of pinned slabs that wait for the next run."""
        return self._kept.nbytes

    def reclaim(self, kind: str, nbytes: int) -> int:
        """Give kept slabs and CuPy's cached blocks back to the governor; returns the bytes freed."""
        freed = 0
        if kind in ("pinned", "host"):
            freed = self._kept.reclaim(nbytes)
        elif kind == "device" and not self.lost:
            import cupy

            pool = cupy.get_default_memory_pool()
            held = pool.total_bytes()
            pool.free_all_blocks()
            freed = held - pool.total_bytes()
            if freed < nbytes:
                freed += self._table.release()
        return freed

    def view(self, slab: Slab, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> TileView:
        return TileView(slab.address + offset, shape[0], shape[1], max(shape[1], 1), dtype, dtype.name)

    def array(self, slab: Slab, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
        import cupy

        memory = cupy.cuda.UnownedMemory(slab.address, slab.nbytes, slab)
        return cupy, cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def reaches(self, store: TileStore, dtype: np.dtype[Any]) -> bool:
        """Whether the copy engine can reach the store's elements at full speed: page-locked, row by row, of this dtype."""
        if store.dtype != dtype:
            return False
        array = store.view(Rect(0, store.shape[0], 0, store.shape[1]))
        if array is None or not array.size or (array.strides[1] != array.itemsize and array.shape[1] > 1) or array.strides[0] < 0:
            return False
        return self.is_pinned(array)

    def is_pinned(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether a NumPy array lies in page-locked memory."""
        try:
            kind: int = self.runtime.pointerGetAttributes(array.__array_interface__["data"][0]).type
        except Exception:  # an unknown address is not pinned
            return False
        return kind == 1

    def upload(self, source: np.ndarray[Any, Any], target: TileView, row: int, col: int, lane: CudaLane) -> None:
        rows, cols = source.shape
        size = source.itemsize
        address = target.address + (row * target.ld + col) * size
        start = source.__array_interface__["data"][0]
        pitch = source.strides[0] if rows > 1 else cols * size
        if pitch == cols * size and target.ld == cols:
            self.runtime.memcpyAsync(address, start, rows * pitch, _TO_DEVICE, lane.stream)
        else:
            self.runtime.memcpy2DAsync(address, target.ld * size, start, pitch, cols * size, rows, _TO_DEVICE, lane.stream)

    def download(self, source: TileView, row: int, col: int, target: np.ndarray[Any, Any], lane: CudaLane) -> None:
        rows, cols = target.shape
        size = target.itemsize
        address = source.address + (row * source.ld + col) * size
        start = target.__array_interface__["data"][0]
        pitch = target.strides[0] if rows > 1 else cols * size
        if pitch == cols * size and source.ld == cols:
            self.runtime.memcpyAsync(start, address, rows * pitch, _TO_HOST, lane.stream)
        else:
            self.runtime.memcpy2DAsync(start, pitch, address, source.ld * size, cols * size, rows, _TO_HOST, lane.stream)

    # -- kernels --------------------------------------------------------------------------------------------------

    def workspace_bytes(self, kernel: str, n: int, dtype: DTypeLike) -> int:
        return self._table.workspace_bytes(kernel, n, np.dtype(dtype).name, self._compute_streams())

    def prepare(self, kernel: str, n: int, dtype: DTypeLike) -> None:
        with self.checked(f"preparing {kernel}"):
            self._table.prepare(kernel, n, np.dtype(dtype).name, self._compute_streams())

    def _compute_streams(self) -> list[int]:
        return [self._streams[name] for name in self._handles]


def _bytes_at(address: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Memory of the driver's as an array."""
    memory: Any = (ctypes.c_ubyte * nbytes).from_address(address)
    array: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8)
    return array


def _warn_unpinned(nbytes: int, owner: str) -> None:
    warnings.warn(
        f"{format_bytes(nbytes)} could not be pinned for {owner}; ordinary memory is used, and copies to the GPU are slower "
        "(pycauset.cuda.set_pinning_budget raises the budget)",
        PycausetWarning,
        stacklevel=3,
    )


class _Checked:
    """Turns CUDA's errors into typed ones."""

    __slots__ = ("_device", "_doing")

    def __init__(self, device: CupyDevice, doing: str) -> None:
        self._device = device
        self._doing = doing

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            typed = self._device.translate(error, self._doing)
            if typed is not error:
                raise typed from error
