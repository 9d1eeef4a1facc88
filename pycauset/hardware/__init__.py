"""What the machine is (`probe`), what was measured on it (`profile`) and where that is remembered (`cache`).

The names of `profile` and `machine` load when they are first used: they bring pydantic with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from pycauset.hardware import probe
from pycauset.hardware.probe import (
    CpuInfo,
    DiskInfo,
    GpuInfo,
    MachineProbe,
    MemoryState,
    Probe,
    cpu_info,
    current_probe,
    disk_info,
    fingerprint,
    gpu_info,
    gpu_memory,
    library_versions,
    memory_state,
    use_probe,
)

if TYPE_CHECKING:
    from pycauset.hardware.machine import FakeMachine, load_machine
    from pycauset.hardware.profile import (
        DTYPES,
        CpuProfile,
        DiskProfile,
        GpuProfile,
        HardwareProfile,
        RatePoint,
        TransferPoint,
        gemm_flops,
    )

__all__ = [
    "DTYPES",
    "CpuInfo",
    "CpuProfile",
    "DiskInfo",
    "DiskProfile",
    "FakeMachine",
    "GpuInfo",
    "GpuProfile",
    "HardwareProfile",
    "MachineProbe",
    "MemoryState",
    "Probe",
    "RatePoint",
    "TransferPoint",
    "cpu_info",
    "current_probe",
    "disk_info",
    "fingerprint",
    "gemm_flops",
    "gpu_info",
    "gpu_memory",
    "library_versions",
    "load_machine",
    "memory_state",
    "probe",
    "use_probe",
]

_LAZY: Final = {
    **dict.fromkeys(("FakeMachine", "load_machine"), "pycauset.hardware.machine"),
    **dict.fromkeys(
        (
            "DTYPES",
            "CpuProfile",
            "DiskProfile",
            "GpuProfile",
            "HardwareProfile",
            "RatePoint",
            "TransferPoint",
            "gemm_flops",
        ),
        "pycauset.hardware.profile",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
