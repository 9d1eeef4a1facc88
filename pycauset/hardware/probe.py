"""The only file that asks the machine anything: processors, memory and its limits, GPU, file systems, libraries.

Questions go to the *current probe*, which is the real machine unless a test put a described one in its place::

    with use_probe(load_machine("profiles/laptop_8gb.json")):
        gpu_info()          # the laptop's

Every answer is cheap except the first about the GPU, which imports CuPy (0.3 s). Sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pycauset.hardware.cgroup import cpu_quota, memory_limits

if TYPE_CHECKING:
    from pycauset.hardware.profile import HardwareProfile

__all__ = [
    "CpuInfo",
    "DiskInfo",
    "GpuInfo",
    "MachineProbe",
    "MemoryState",
    "Probe",
    "cpu_info",
    "current_probe",
    "current_rss",
    "disk_info",
    "fingerprint",
    "gpu_info",
    "gpu_memory",
    "gpu_problem",
    "idle_rss",
    "import_cupy",
    "library_versions",
    "memory_state",
    "peak_rss",
    "printable",
    "reset_peak_rss",
    "use_probe",
]

_ROOT: Final = Path("/")
_ISA: Final = ("avx512f", "avx2", "avx", "sse4_2", "sve", "asimd")  # best first, as /proc/cpuinfo spells them
_THREAD_SETTINGS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_CUPY_DISTRIBUTIONS: Final = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """Processor name, cores this process may use (affinity and cgroup quota), widest vector instructions."""

    name: str
    cores: int
    isa: str


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Bytes there are, and bytes that can still be taken without pushing anybody out."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """What ``cudaGetDeviceProperties`` says, and the versions of driver and runtime (13020 is CUDA 13.2)."""

    name: str
    compute_capability: str
    memory: int
    multiprocessors: int
    copy_engines: int
    integrated: bool
    driver: int
    runtime: int


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """Free bytes, file system type and mounted device of a folder (of its nearest parent that exists)."""

    free: int
    filesystem: str
    device: str


class Probe(Protocol):
    """What can be asked of a machine; `MachineProbe` is this one, `pycauset.hardware.FakeMachine` a described one."""

    def cpu_info(self) -> CpuInfo: ...

    def memory_state(self) -> MemoryState: ...

    def gpu_info(self, device: int = 0) -> GpuInfo | None: ...

    def gpu_memory(self, device: int = 0) -> MemoryState | None: ...

    def disk_info(self, folder: Path) -> DiskInfo: ...

    def library_versions(self) -> dict[str, str]: ...

    def measured(self) -> HardwareProfile | None:
        """What the benchmarks would find, if this machine is only described; None if they have to run."""


class MachineProbe:
    """The machine that this process runs on.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are; tests point it at a folder of made-up files.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root

    def cpu_info(self) -> CpuInfo:
        return cpu_info(self._root)

    def memory_state(self) -> MemoryState:
        return memory_state(self._root)

    def gpu_info(self, device: int = 0) -> GpuInfo | None:
        return _gpu_info(device)

    def gpu_memory(self, device: int = 0) -> MemoryState | None:
        return _gpu_memory(device)

    def disk_info(self, folder: Path) -> DiskInfo:
        return disk_info(folder, self._root)

    def library_versions(self) -> dict[str, str]:
        return dict(_library_versions())

    def measured(self) -> None:
        return None


_machine: Final = MachineProbe()
_current: Probe = _machine


def current_probe() -> Probe:
    """The machine that questions go to."""
    return _current


@contextlib.contextmanager
def use_probe(probe: Probe) -> Iterator[Probe]:
    """Answer every question in this process from ``probe`` inside a ``with`` block.

    Examples
    --------
    >>> from pycauset.hardware import load_machine
    >>> with use_probe(load_machine("profiles/tiny_container.json")):
    ...     memory_state().total
    268435456
    """
    global _current
    before, _current = _current, probe
    try:
        yield probe
    finally:
        _current = before


def _asked_elsewhere(root: Path | None) -> Probe | None:
    """The described machine that has to answer, or None when this machine's files (or those under ``root``) do."""
    return _current if root is None and _current is not _machine else None


def cpu_info(root: Path | None = None) -> CpuInfo:
    """Name, usable cores and instruction set of the processor.

    Parameters
    ----------
    root : Path, optional
        Read ``proc`` and ``sys`` below this folder; the current probe answers if omitted.

    Examples
    --------
    >>> cpu_info().cores >= 1
    True
    """
    if probe := _asked_elsewhere(root):
        return probe.cpu_info()
    root = root or _ROOT
    name, flags = "", frozenset[str]()
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        key = key.strip()
        if key in ("model name", "Model", "cpu model") and not name:
            name = value.strip()
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
        if name and flags:
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    if quota is not None:
        cores = max(1, min(cores, math.ceil(quota)))
    isa = next((flag for flag in _ISA if flag in flags), "")
    return CpuInfo(printable(name or platform.processor() or platform.machine() or "unknown processor"), cores, isa)


def memory_state(root: Path | None = None) -> MemoryState:
    """Total and free RAM in bytes: the smaller of the system's and of what the cgroups (v1 and v2) allow.

    Free memory counts file pages that the kernel can drop, and no swap.

    Examples
    --------
    >>> state = memory_state()
    >>> 0 < state.free <= state.total
    True
    """
    if probe := _asked_elsewhere(root):
        return probe.memory_state()
    root = root or _ROOT
    fields: dict[str, int] = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdecimal():
            fields[key] = int(number[0]) * 1024
    if "MemTotal" in fields:
        total = fields["MemTotal"]
        free = fields.get("MemAvailable", fields.get("MemFree", 0))
    else:
        import psutil

        virtual = psutil.virtual_memory()
        total, free = int(virtual.total), int(virtual.available)
    for limit, used in memory_limits(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return MemoryState(total, min(free, total))


def gpu_info(device: int = 0) -> GpuInfo | None:
    """Properties of a GPU, or None without CuPy, driver or device. Never raises; does not create a CUDA context."""
    return _current.gpu_info(device)


def gpu_problem(device: int = 0) -> str | None:
    """Why `gpu_info` is None, in words for an error message; None if it is not."""
    if _current is not _machine:
        return None if _current.gpu_info(device) else "the described machine has none"
    return _ask_gpu(device)[1]


def gpu_memory(device: int = 0) -> MemoryState | None:
    """Total and free memory of a GPU now, or None without one. Never raises; creates the CUDA context."""
    return _current.gpu_memory(device)


def disk_info(folder: Path, root: Path | None = None) -> DiskInfo:
    """Free bytes, file system and device of ``folder``, or of its nearest parent that exists.

    Examples
    --------
    >>> disk_info(Path("/no/such/folder")).filesystem == disk_info(Path("/")).filesystem
    True
    """
    if probe := _asked_elsewhere(root):
        return probe.disk_info(folder)
    place = Path(os.path.realpath(folder))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        numbers = os.statvfs(place)
        free = numbers.f_bavail * numbers.f_frsize
    except OSError:
        free = 0
    best, filesystem, device = -1, "", ""
    for line in _lines((root or _ROOT) / "proc/self/mountinfo"):
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 2:
            continue
        mount = fields[4].replace("\\040", " ")
        if place.is_relative_to(mount) and len(mount) >= best:  # of two mounts on one folder the later one is seen
            best, filesystem, device = len(mount), kind[0], kind[1]
    return DiskInfo(free, printable(filesystem), printable(device))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that set the speed: python, numpy, scipy, cupy (if installed), pycauset."""
    return _current.library_versions()


def fingerprint(probe: Probe | None = None) -> dict[str, str]:
    """What measured figures depend on: processor, cores, BLAS threads, GPU, driver, CUDA and library versions.

    Nothing in it identifies one machine among equal ones (no serial number, host name or address).
    """
    probe = probe or _current
    cpu, gpu = probe.cpu_info(), probe.gpu_info()
    found = {
        "cpu": cpu.name,
        "cores": str(cpu.cores),
        "isa": cpu.isa,
        "threads": ",".join(f"{name}={os.environ[name]}" for name in _THREAD_SETTINGS if name in os.environ),
        "gpu": "" if gpu is None else f"{gpu.name}, {gpu.compute_capability}, {gpu.memory}",
        "driver": "" if gpu is None else str(gpu.driver),
        "cuda": "" if gpu is None else str(gpu.runtime),
        **probe.library_versions(),
    }
    return {key: printable(value) for key, value in found.items()}


def import_cupy() -> Any | None:
    """The CuPy module, or None where it is missing or broken. Imports it on the first call, once.

    Importing CuPy can fail with more than ImportError (it makes a folder in the user's home), so everything is caught.
    """
    return _import_cupy()[0]


def current_rss() -> int:
    """Bytes of RAM that this process occupies now."""
    try:
        pages = int((_ROOT / "proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import psutil

        return int(psutil.Process().memory_info().rss)


def peak_rss() -> int:
    """Most bytes of RAM that this process has occupied, since it began or since `reset_peak_rss`."""
    for line in _lines(_ROOT / "proc/self/status"):
        if line.startswith("VmHWM:"):
            return max(int(line.split()[1]) * 1024, current_rss())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def reset_peak_rss() -> bool:
    """Start `peak_rss` anew; False where the kernel does not allow it."""
    try:
        (_ROOT / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@lru_cache(maxsize=1)
def idle_rss() -> int:
    """Bytes of RAM of a fresh interpreter that has imported pycauset and computed one tiny product.

    A memory limit covers what an operation adds over this. The answer takes a child process, once.
    """
    import subprocess

    code = (
        "import numpy as np, pycauset; a = np.ones((8, 8)); np.matmul(a, a); "
        "from pycauset.hardware import probe; print(probe.current_rss())"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(child.stdout.split()[-1])


def printable(text: str, length: int = 256) -> str:
    """``text`` with control characters replaced and cut to ``length``: it comes from outside and goes to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:length]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


@lru_cache(maxsize=1)
def _import_cupy() -> tuple[Any | None, str]:
    """The module, or None and the reason."""
    try:
        if importlib.util.find_spec("cupy") is None:
            return None, "CuPy is not installed (pip install 'pycauset[cuda12]' or 'pycauset[cuda13]')"
        return importlib.import_module("cupy"), ""
    except Exception as error:  # an unwritable home, a broken library, two versions at once: no GPU then
        return None, f"CuPy cannot be imported ({type(error).__name__}: {printable(str(error))})"


def _gpu_info(device: int) -> GpuInfo | None:
    return _ask_gpu(device)[0]


@lru_cache(maxsize=8)
def _ask_gpu(device: int) -> tuple[GpuInfo | None, str | None]:
    """The properties, or None and the reason."""
    cupy, problem = _import_cupy()
    if cupy is None:
        return None, problem
    try:
        if not cupy.cuda.is_available():
            return None, "CuPy finds no CUDA driver, or no device that it may use"
        runtime = cupy.cuda.runtime
        found: Mapping[str, Any] = runtime.getDeviceProperties(device)
        name = found["name"]
        return GpuInfo(
            name=printable(name.decode(errors="replace") if isinstance(name, bytes) else str(name)),
            compute_capability=f"{found['major']}.{found['minor']}",
            memory=int(found["totalGlobalMem"]),
            multiprocessors=int(found["multiProcessorCount"]),
            copy_engines=int(found.get("asyncEngineCount", 1)),
            integrated=bool(found.get("integrated", False)),
            driver=int(runtime.driverGetVersion()),
            runtime=int(runtime.runtimeGetVersion()),
        ), None
    except Exception as error:  # whatever a broken driver raises: without properties there is no GPU to use
        return None, f"CUDA does not answer ({type(error).__name__}: {printable(str(error))})"


def _gpu_memory(device: int) -> MemoryState | None:
    cupy = import_cupy()
    if cupy is None or _gpu_info(device) is None:
        return None
    try:
        with cupy.cuda.Device(device):
            free, total = cupy.cuda.runtime.memGetInfo()
    except Exception:  # a context that cannot be made is no memory
        return None
    return MemoryState(int(total), int(free))


@lru_cache(maxsize=1)
def _library_versions() -> tuple[tuple[str, str], ...]:
    from importlib.metadata import PackageNotFoundError, version

    found = [("python", platform.python_version())]
    for name, distributions in (
        ("numpy", ("numpy",)),
        ("scipy", ("scipy",)),
        ("cupy", _CUPY_DISTRIBUTIONS),
        ("pycauset", ("pycauset",)),
    ):
        for distribution in distributions:
            with contextlib.suppress(PackageNotFoundError):
                found.append((name, printable(version(distribution))))
                break
    return tuple(found)
