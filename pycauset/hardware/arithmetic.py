"""What the bits of a result depend on beside its operands: the BLAS and its threads, and the GPU with its software.

A journal keeps it, so that work goes on only where it would come out the same.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from pycauset.hardware.probe import fingerprint, printable

__all__ = ["cpu_arithmetic", "gpu_arithmetic"]


def cpu_arithmetic() -> dict[str, Any]:
    """Cores, vector instructions, settings of threads, and each BLAS with its version, kernels and threads as they are now.

    Examples
    --------
    >>> list(cpu_arithmetic())
    ['cpu', 'cores', 'settings', 'instructions', 'blas']
    """
    machine = fingerprint()
    importlib.import_module("scipy.linalg.cython_blas")  # kernels use it, and only what is loaded can be asked
    entries = importlib.import_module("threadpoolctl").threadpool_info()
    return {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "settings": machine["threads"],
        "instructions": machine["isa"],
        "blas": {_name(entry): _description(entry) for entry in entries if entry.get("user_api") == "blas"},
    }


def gpu_arithmetic() -> dict[str, str]:
    """Model, driver, CUDA runtime and CuPy; empty texts without a GPU.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/no_gpu.json")):
    ...     gpu_arithmetic()["gpu"]
    ''
    """
    machine = fingerprint()
    return {name: machine.get(name, "") for name in ("gpu", "driver", "cuda", "cupy")}


def _name(entry: dict[str, Any]) -> str:
    """NumPy and SciPy each bring a library of the same name: the folder tells them apart."""
    folder = os.path.basename(os.path.dirname(str(entry.get("filepath"))))
    return printable(f"{folder}/{entry.get('prefix')}")


def _description(entry: dict[str, Any]) -> dict[str, Any]:
    fields = ("internal_api", "version", "architecture", "threading_layer")
    return {**{name: printable(str(entry.get(name))) for name in fields}, "threads": entry.get("num_threads")}
