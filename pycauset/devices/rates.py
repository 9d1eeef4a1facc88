"""Seconds for each stage of a streamed operation, from a hardware profile. The planner and the simulation share them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from pycauset.hardware.profile import HardwareProfile

__all__ = ["Place", "Rates"]

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

    def __init__(self, profile: HardwareProfile, kind: str, dtype: DTypeLike, places: Iterable[Place] = ("disk",)) -> None:
        self.profile = profile
        self.kind = kind
        self.dtype = np.dtype(dtype)
        cpu, disk, gpu = profile.cpu, profile.disk, profile.gpu
        on_disk = "disk" in set(places)
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

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for rates that predict the same."""
        device = self.profile.cpu if self.kind == "cpu" else self.profile.gpu
        return self.kind, self.dtype.name, self.read, self.write, self.upload, self.download, self.pin, self.launch, id(device)

    def compute(self, flops: float) -> float:
        """Seconds of one kernel of ``flops`` floating-point operations."""
        if flops <= 0:
            return self.launch
        size = (flops / (8 if self.dtype.kind == "c" else 2)) ** (1 / 3)
        return self.launch + flops / self.profile.gemm_rate(self.kind, self.dtype.name, size)  # type: ignore[arg-type]
