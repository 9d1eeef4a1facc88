"""A GPU in host memory, stores that are slow or break, and one function that runs a product on any of them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np

from pycauset.devices.base import Device, Lanes, Slab
from pycauset.devices.memory import pageable_slab
from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.slots import temporary_bytes
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.governor import MemoryGovernor
from pycauset.hardware import MemoryState, load_machine
from pycauset.storage import ArrayStore
from pycauset.tiling import Rect
from tests.deadlock import watchdog

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
PROFILE = load_machine(PROFILES / "h200.json").profile
OP = {"N": lambda x: x, "T": lambda x: x.T, "H": lambda x: x.conj().T}
GB = 10**9


class Hidden(ArrayStore):
    """An array that nobody may look into: every element passes through read and write, as on a disk."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, int] | None = None, pause: float = 0.0) -> None:
        super().__init__(array)
        self.chunks = chunks or self.chunks
        self.pause = pause
        self.writes: list[Rect] = []

    def view(self, rect: Rect) -> np.ndarray | None:
        return None

    def _read(self, rect: Rect, out: np.ndarray) -> None:
        nap(self.pause)
        super()._read(rect, out)

    def _write(self, rect: Rect, data: np.ndarray) -> None:
        nap(self.pause)
        self.writes.append(rect)
        super()._write(rect, data)


class Pinned(ArrayStore):
    """An array that the copy engine of the pretended GPU can reach."""


def nap(most: float) -> None:
    if most:
        time.sleep(random.random() * most)


class FakeGpu(Device):
    """Two levels of slots like a GPU, in host memory: real copies, real kernels, any order that the waits allow.

    Fresh memory is full of NaN, so that a slot used before it is filled shows.
    """

    kind = "gpu"
    name = "pretended GPU"
    unified = False

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.kernels = dict(NumpyDevice().kernels)
        for name in ("gemm", "rank_k", "scale"):
            self.kernels[name] = self._delayed(self.kernels[name])
        self.uploads = self.downloads = 0

    def _delayed(self, kernel):
        def run(reads, writes, params, lane):
            nap(self.pause)
            kernel(reads, writes, params, lane)

        return run

    def lanes(self, *, mode, failure, timeline, readers, writers) -> Lanes:
        names = {"read": readers, "upload": 1, "compute": 1, "download": 1, "write": writers}
        read, upload, compute, download, write = self.host_lanes(mode, failure, timeline, names)
        return Lanes(read, write, (compute,), upload, download)

    def device_slab(self, nbytes, scope, owner) -> Slab:
        ticket = scope.require("device", nbytes, owner=owner)
        return Slab(nbytes, ticket, array=np.full(nbytes, 0xFF, np.uint8))

    def host_slab(self, nbytes, scope, owner) -> Slab:
        slab = pageable_slab(nbytes, scope, owner)
        slab.array[...] = 0xFF
        return slab

    def view(self, slab, offset, shape, dtype):
        return np.ndarray(shape, dtype, buffer=slab.array.data, offset=offset)

    def reaches(self, store, dtype) -> bool:
        return isinstance(store, Pinned) and store.dtype == dtype

    def upload(self, source, target, row, col, lane) -> None:
        nap(self.pause)
        self.uploads += 1
        np.copyto(target[row : row + source.shape[0], col : col + source.shape[1]], source, casting="no")

    def download(self, source, row, col, target, lane) -> None:
        nap(self.pause)
        self.downloads += 1
        np.copyto(target, source[row : row + target.shape[0], col : col + target.shape[1]], casting="no")


def fresh_governor() -> MemoryGovernor:
    governor = MemoryGovernor(lambda: MemoryState(64 * GB, 32 * GB))
    governor.set_device_memory(16 * GB, 16 * GB)
    return governor


def random_matrix(rng: np.random.Generator, shape: tuple[int, int], dtype) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    x = rng.standard_normal(shape)
    if dtype.kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def stream(device, a, b, c, *, limit, host=0, mode="async", dtype=None, timeline=None, readers=2, profile=PROFILE, **options):
    """Plan and run one product; returns the plan and the statistics. Nothing may be left afterwards."""
    dtype = np.dtype(dtype or c.dtype)
    driver = MatmulDriver(a, b, c, dtype, **options)
    limits = MatmulLimits(limit, host)
    plan = driver.plan(device, limits, Rates(profile, device.kind, dtype))
    governor = fresh_governor()
    operands = driver.operands(plan)
    temporary = temporary_bytes(device, operands, readers, 1)
    level = limit if device.unified else host
    with watchdog(), governor.scope(host=level + temporary, device=0 if device.unified else limit, owner="a test") as scope:
        with AsyncStreamer(
            device,
            operands,
            scope,
            host_slots=plan.host_slots,
            host_slot_bytes=plan.host_slot_bytes,
            mode=mode,
            readers=readers,
            timeline=timeline is not None,
        ) as streamer:
            streamer.run(driver.tasks(plan))
            statistics = streamer.statistics()
            if timeline is not None:
                streamer.export_timeline(timeline)
        assert scope.in_use("host") == scope.in_use("device") == 0
        assert scope.peak("host") <= level + temporary
        assert scope.peak("device") <= limit
    assert not scope.leaks
    return plan, statistics
