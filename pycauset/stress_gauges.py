"""What a stress run measures around its work: the disk's speed, and how far GPU memory and the disk have filled up."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pycauset.hardware import probe
from pycauset.storage import aligned_empty, create_store
from pycauset.tiling import Rect

__all__ = ["Peaks", "disk_bytes", "disk_rates", "gpu_bytes"]

_DISK_BYTES: Final = 1 << 30  # written and read to measure the disk
_INTERVAL: Final = 0.05  # seconds between looks


class Peaks:
    """Looks at GPU memory and at the disk again and again in a thread of its own, and keeps the highest it has seen.

    It sees all that anybody takes: libraries, kernels loaded late, other processes. It may miss what is taken for less than a
    twentieth of a second; memory for tiles is taken once, for the whole run.

    Parameters
    ----------
    folder : Path
        On the disk in question.
    gpu : bool
        Whether to look at the GPU.

    Attributes
    ----------
    gpu_bytes, disk_bytes : int
        Most bytes in use.
    """

    def __init__(self, folder: Path, *, gpu: bool) -> None:
        self.gpu_bytes = self.disk_bytes = 0
        self._folder, self._gpu = folder, gpu
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pycauset-peaks", daemon=True)

    def look(self) -> None:
        """One look."""
        if self._gpu:
            self.gpu_bytes = max(self.gpu_bytes, gpu_bytes())
        with suppress(OSError):
            self.disk_bytes = max(self.disk_bytes, shutil.disk_usage(self._folder).used)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.look()

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.look()


def gpu_bytes() -> int:
    """GPU memory in use by everybody, 0 without a GPU."""
    state = probe.gpu_memory()
    return 0 if state is None else state.total - state.free


def disk_bytes(folder: Path, *paths: Path) -> int:
    """Bytes in use on the disk of ``folder``, without what lies at ``paths``."""
    ours = 0
    for path in paths:
        for place, _, names in os.walk(path):
            for name in names:
                with suppress(OSError):
                    ours += os.lstat(os.path.join(place, name)).st_blocks * 512
    return shutil.disk_usage(folder).used - ours


def disk_rates(folder: Path, chunks: tuple[int, int], kind: np.dtype[Any], nbytes: int) -> tuple[float, float]:
    """Bytes a second of reading and of writing whole chunks in this folder, with the threads that a streamed run has."""
    readers, writers = (8, 4) if probe.cpu_info().cores >= 8 else (2, 1)
    height, width = chunks
    count = max(2 * readers, min(_DISK_BYTES, nbytes) // (height * width * kind.itemsize))
    rects = [Rect(0, height, at * width, (at + 1) * width) for at in range(count)]
    path = folder / f"bandwidth-{os.getpid()}.zarr"
    with create_store(path, (height, count * width), kind, chunks=chunks) as store:
        written = _rate(store.write, rects, writers, chunks, kind)
        read = _rate(store.read, rects, readers, chunks, kind)
    return read, written


def _rate(
    move: Callable[[Rect, NDArray[Any]], None], rects: list[Rect], threads: int, shape: tuple[int, int], kind: np.dtype[Any]
) -> float:
    buffers = [aligned_empty(shape, kind) for _ in range(threads)]
    for buffer in buffers:
        buffer[...] = 1

    def share(number: int) -> None:
        for rect in rects[number::threads]:
            move(rect, buffers[number])

    with ThreadPoolExecutor(threads, thread_name_prefix="pycauset-disk") as pool:
        begin = perf_counter()
        list(pool.map(share, range(threads)))
        return len(rects) * buffers[0].nbytes / (perf_counter() - begin)
