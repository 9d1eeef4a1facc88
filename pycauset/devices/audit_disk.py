"""Benchmarks of the scratch folder's disk, by direct I/O where it allows that; the file is gone afterwards."""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pycauset.hardware.probe import DiskInfo, printable
from pycauset.hardware.profile import DiskProfile

__all__ = ["measure_disk"]

_BLOCK: Final = 4 * 2**20
_BLOCKS: Final = 64
_PAGE: Final = 4096
_THREADS: Final = 2


def measure_disk(folder: Path, info: DiskInfo, *, seconds: float) -> DiskProfile:
    """Measure writing, reading, both at once and one small read in about ``seconds``; never raises.

    A slow disk is measured on fewer blocks, so a single 4 MiB block bounds how far the budget can be overrun. Without a
    writable folder or 64 MiB of free room the figures are those of a slow disk, and the profile says that it assumes.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    info : DiskInfo
    seconds : float
    """
    if info.free >= 16 * _BLOCK:
        # The folder may be read-only, on a network, full, or gone in the middle.
        with contextlib.suppress(OSError, ValueError):
            return _measure(folder, info, seconds)
    return DiskProfile(
        folder=printable(str(folder), 4096),
        filesystem=info.filesystem,
        device=info.device,
        read_bandwidth=2e8,
        write_bandwidth=2e8,
        mixed_bandwidth=None,
        direct=False,
        latency_seconds=1e-3,
        assumed=True,
    )


def _measure(folder: Path, info: DiskInfo, seconds: float) -> DiskProfile:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    blocks = max(2, min(_BLOCKS, info.free // (8 * _BLOCK)))
    buffers = [mmap.mmap(-1, _BLOCK) for _ in range(_THREADS)]  # page-aligned, as direct I/O wants them
    descriptor, name = tempfile.mkstemp(prefix=".pycauset-audit-", dir=folder)
    try:
        os.close(descriptor)
        descriptor, direct = _open(name)
        # Without its name the file vanishes with this process, however that ends.
        os.unlink(name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    try:
        for buffer in buffers:
            buffer.write(os.urandom(_PAGE) * (_BLOCK // _PAGE))  # no zeros: some file systems do not store them

        def write(thread: int, block: int) -> None:
            _whole(os.pwrite, descriptor, memoryview(buffers[thread]), block * _BLOCK)

        def read(thread: int, block: int) -> None:
            _fill(descriptor, memoryview(buffers[thread]), block * _BLOCK)

        with ThreadPoolExecutor(_THREADS) as pool:
            begin = time.perf_counter()
            counts = _run(pool, [write] * _THREADS, blocks, 0.35 * seconds)
            if not direct:
                os.fsync(descriptor)
            write_bandwidth = sum(counts) * _BLOCK / (time.perf_counter() - begin)
            # Threads that stopped at different blocks have left holes in the file; read what lies before the first.
            written = min(min(counts) * _THREADS, blocks)
            _forget(descriptor, direct)
            begin = time.perf_counter()
            counts = _run(pool, [read] * _THREADS, written, 0.3 * seconds)
            read_bandwidth = sum(counts) * _BLOCK / (time.perf_counter() - begin)
            _forget(descriptor, direct)
            latency = _latency(descriptor, written, 0.1 * seconds)
            mixed_bandwidth = None
            if direct and written >= 4:
                begin = time.perf_counter()
                counts = _run(pool, [read, write], written, 0.25 * seconds)
                mixed_bandwidth = sum(counts) * _BLOCK / (time.perf_counter() - begin)
    finally:
        os.close(descriptor)
        for buffer in buffers:
            # After an error the traceback still holds a view; the buffer then goes with it.
            with contextlib.suppress(BufferError):
                buffer.close()
    return DiskProfile(
        folder=printable(str(folder), 4096),
        filesystem=info.filesystem,
        device=info.device,
        read_bandwidth=read_bandwidth,
        write_bandwidth=write_bandwidth,
        mixed_bandwidth=mixed_bandwidth,
        direct=direct,
        latency_seconds=latency,
    )


def _open(name: str) -> tuple[int, bool]:
    """Open for direct I/O if a direct write succeeds (some file systems accept the flag and refuse the write)."""
    flag = getattr(os, "O_DIRECT", 0)
    if flag:
        descriptor = -1
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | flag)
            with mmap.mmap(-1, _PAGE) as page:
                os.pwrite(descriptor, page, 0)
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
        else:
            return descriptor, True
    return os.open(name, os.O_RDWR | os.O_CLOEXEC), False


def _run(pool: ThreadPoolExecutor, jobs: list[Callable[[int, int], None]], blocks: int, budget: float) -> list[int]:
    """Deal the blocks out to one thread for each job until the budget is spent; returns how many each has done."""
    end = time.perf_counter() + budget

    def work(thread: int) -> int:
        done = 0
        for block in range(thread, blocks, len(jobs)):
            if done and time.perf_counter() > end:
                break
            jobs[thread](thread, block)
            done += 1
        return done

    return list(pool.map(work, range(len(jobs))))


def _whole(move: Callable[[int, memoryview, int], int], descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += move(descriptor, view[done:], offset + done)


def _fill(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        moved = os.preadv(descriptor, [view[done:]], offset + done)
        if moved == 0:
            raise OSError("the benchmark's file ended early")
        done += moved


def _latency(descriptor: int, blocks: int, budget: float) -> float:
    times = []
    end = time.perf_counter() + budget
    with mmap.mmap(-1, _PAGE) as page:
        for i in range(32):
            offset = (i * 7919 * _PAGE) % (blocks * _BLOCK)  # a prime stride: no read-ahead helps
            begin = time.perf_counter()
            os.preadv(descriptor, [page], offset)
            times.append(time.perf_counter() - begin)
            if time.perf_counter() > end:
                break
    return statistics.median(times)


def _forget(descriptor: int, direct: bool) -> None:
    """Drop the file's pages from the cache, or reading would measure RAM."""
    if not direct and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
