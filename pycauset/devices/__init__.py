"""Devices: where kernels run. :func:`cpu` and :func:`gpu` hand out the process's own."""

from __future__ import annotations

import functools
import threading
import warnings
from typing import TYPE_CHECKING

from pycauset.errors import DeviceError, PycausetWarning

if TYPE_CHECKING:
    from pycauset.devices.cupy import CupyDevice
    from pycauset.devices.numpy import NumpyDevice

__all__ = ["cpu", "gpu"]

_lock = threading.Lock()


@functools.cache
def cpu() -> NumpyDevice:
    """The CPU, as a device."""
    from pycauset.devices.numpy import NumpyDevice

    return NumpyDevice()


@functools.cache
def _gpu() -> CupyDevice | None:
    from pycauset.hardware import probe

    if probe.gpu_info() is None:
        return None
    from pycauset.devices.cupy import CupyDevice

    try:
        return CupyDevice()
    except DeviceError as error:
        warnings.warn(f"the GPU is left alone: {error}", PycausetWarning, stacklevel=3)
        return None


def gpu() -> CupyDevice | None:
    """The GPU, or None where there is none, it cannot start, or a CUDA error has made it unusable."""
    with _lock:
        device = _gpu()
    return None if device is None or device.lost else device
