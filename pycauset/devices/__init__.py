"""Devices: where kernels run. :func:`cpu` and :func:`gpu` hand out the process's own."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from typing import TYPE_CHECKING

from pycauset.errors import DeviceError, PycausetWarning

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from pycauset.devices.base import Device
    from pycauset.devices.cupy import CupyDevice
    from pycauset.devices.numpy import NumpyDevice
    from pycauset.hardware.profile import HardwareProfile

__all__ = ["cpu", "gpu", "gpu_is_cold", "kept_host_bytes", "kept_pinned_bytes", "pretended_gpu"]

_lock = threading.Lock()

#: Host memory that stays for the next run.
_KEPT_BYTES = 1 << 30


@functools.cache
def cpu() -> NumpyDevice:
    """The CPU, as a device."""
    from pycauset.devices.numpy import NumpyDevice
    from pycauset.governor import governor

    device = NumpyDevice(keep=_KEPT_BYTES)
    governor().add_reclaimer(device.reclaim)
    return device


@functools.cache
def _gpu() -> CupyDevice | None:
    from pycauset.hardware import probe

    if probe.gpu_info() is None:
        return None
    from pycauset.devices.cupy import CupyDevice

    try:
        device = CupyDevice()
        _tell_governor(device)
        return device
    except DeviceError as error:
        warnings.warn(f"the GPU is left alone: {error}", PycausetWarning, stacklevel=3)
        return None


def _tell_governor(device: CupyDevice) -> None:
    from pycauset.governor import governor

    free, total = device.runtime.memGetInfo()
    governor().set_device_memory(total, free)
    governor().add_reclaimer(device.reclaim)


def gpu_is_cold() -> bool:
    """Whether using the GPU would start CUDA first, which takes about a second."""
    return _gpu.cache_info().currsize == 0


def kept_pinned_bytes() -> int:
    """Pinned bytes that earlier runs left for later ones: held by tickets, but there for the taking."""
    device = None if gpu_is_cold() else _gpu()
    return 0 if device is None else device.kept_bytes


def kept_host_bytes() -> int:
    """The same for ordinary host memory."""
    return cpu().kept_bytes


def pretended_gpu(profile: HardwareProfile, dtype: DTypeLike) -> Device | None:
    """A stand-in for the GPU that a described machine has and this one lacks: plans can be made for it, not run."""
    from pycauset.hardware import current_probe

    if current_probe().measured() is None:
        return None
    from pycauset.devices.rates import Rates
    from pycauset.devices.sim import SimDevice

    return SimDevice(Rates(profile, "gpu", dtype))


def gpu() -> CupyDevice | None:
    """The GPU, or None where there is none, it cannot start, or a CUDA error has made it unusable."""
    with _lock:
        device = _gpu()
    return None if device is None or device.lost else device


if hasattr(os, "register_at_fork"):  # what a child inherits is under tickets of its parent's governor
    os.register_at_fork(after_in_child=cpu.cache_clear)
