"""Seconds for each stage of a streamed operation, from a hardware profile. The planner and the simulation share them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from pycauset.hardware.profile import HardwareProfile

__all__ = ["FRACTIONS", "Place", "Rates"]

#: Speed of other kernels as a fraction of gemm's, and the order from which it holds (below it falls in proportion; 0: it holds
#: everywhere). From cuSOLVER's and cuBLAS's figures on an H200 and OpenBLAS's on two cores (benchmarks/results).
FRACTIONS: dict[str, dict[str, tuple[float, int]]] = {
    "cpu": {"potrf": (0.75, 0), "trsm": (0.85, 0), "rank_k": (0.95, 0), "trmm": (0.85, 0), "trtri": (0.6, 0)},
    "gpu": {"potrf": (0.55, 20000), "trsm": (0.7, 0), "rank_k": (0.85, 0), "trmm": (0.7, 0), "trtri": (0.4, 16000)},
}

Place = Literal["disk", "ram", "pinned"]


class Rates:
    """Seconds for each kind of job, from a hardware profile.

    Parameters
    ----------
    profile : HardwareProfile
        The measured (or made-up) machine.
    kind : {"cpu", "gpu"}
        Which of its two devices computes.
    dtype : dtype
        The type that kernels work in.
    places : set of {"disk", "ram", "pinned"}
        Where the operands lie: decides how fast the read and write lanes are.
    """

    #: Seconds that one task costs the thread which submits it, beside all stages (measured on the H200's machine).
    submit = 4e-5

    def __init__(self, profile: HardwareProfile, kind: str, dtype: DTypeLike, places: Iterable[Place] = ("disk",)) -> None:
        self.profile = profile
        self.kind = kind
        self.dtype = np.dtype(dtype)
        cpu, disk, gpu = profile.cpu, profile.disk, profile.gpu
        self.on_disk = on_disk = "disk" in set(places)
        self.read = disk.read_bandwidth if on_disk else cpu.copy_bandwidth_all
        self.write = disk.write_bandwidth if on_disk else cpu.copy_bandwidth_all
        if kind == "gpu":
            if gpu is None:
                raise ValueError("the profile has no GPU")
            self.upload, self.download, self.pin = gpu.h2d_pinned, gpu.d2h_pinned, gpu.pin_bandwidth
            # Launches are queued ahead: what one costs the GPU is a fraction of what waiting for it costs the host.
            self.launch = gpu.launch_seconds / 5
        else:
            self.upload = self.download = self.pin = float("inf")
            self.launch = cpu.call_seconds
        curve = (cpu if gpu is None or kind == "cpu" else gpu).gemm[self.dtype.name]  # type: ignore[index]
        self._sizes = [math.log(point.n) for point in curve]
        self._rates = [math.log(point.flops) for point in curve]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for rates that predict the same."""
        device = self.profile.cpu if self.kind == "cpu" else self.profile.gpu
        return (
            self.kind,
            self.dtype.name,
            self.on_disk,
            self.read,
            self.write,
            self.upload,
            self.download,
            self.pin,
            self.launch,
            id(device),
        )

    def stores(self, read: float, written: float) -> float:
        """Seconds that stores take for so many bytes: a disk serves reads and writes in turn, memory at the same time."""
        back, forth = read / self.read, written / self.write
        return back + forth if self.on_disk else max(back, forth)

    def compute(self, flops: float, kernel: str = "gemm") -> float:
        """Seconds of one kernel of ``flops`` floating-point operations."""
        if kernel in FRACTIONS[self.kind]:
            fraction, full = FRACTIONS[self.kind][kernel]
            order: float = (3 * flops / (4 if self.dtype.kind == "c" else 1)) ** (1 / 3)
            return self.compute(flops / min(fraction, fraction * order / full if full else fraction))
        if flops <= 0:
            return self.launch
        size = math.log(flops / (8 if self.dtype.kind == "c" else 2)) / 3
        sizes, rates = self._sizes, self._rates
        index = bisect_left(sizes, size)
        if index == 0 or index == len(sizes):
            return self.launch + flops / math.exp(rates[min(index, len(sizes) - 1)])
        weight = (size - sizes[index - 1]) / (sizes[index] - sizes[index - 1])
        return self.launch + flops / math.exp((1 - weight) * rates[index - 1] + weight * rates[index])
