"""The hardware audit: measures this machine once, remembers it, and measures again when the machine has changed.

`load_profile` is what everybody calls. `measure` runs the benchmarks of `audit_cpu`, `audit_disk` and `audit_gpu`, each
inside a time budget: about 1.5 s for processor and disk, and 1.2 s more for a GPU. It prints nothing and leaves nothing
behind but the profile. A profile that was disturbed by other processes serves this one and is not remembered.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pycauset import config
from pycauset.devices.audit_cpu import measure_cpu
from pycauset.devices.audit_disk import measure_disk
from pycauset.devices.audit_gpu import measure_gpu
from pycauset.errors import PycausetWarning
from pycauset.hardware import cache
from pycauset.hardware.probe import Probe, current_probe, fingerprint
from pycauset.hardware.profile import GpuProfile, HardwareProfile

__all__ = ["load_profile", "measure", "scratch_folder", "using_profile"]

_CPU_SECONDS: Final = 1.1
_DISK_SECONDS: Final = 0.4
_GPU_SECONDS: Final = 1.2

_lock: Final = threading.Lock()
_loaded: tuple[tuple[Probe, Path, Path], HardwareProfile] | None = None


def scratch_folder() -> Path:
    """The folder whose disk counts: the setting ``scratch``, else the system's temporary one."""
    folder: Path | None = config.get("scratch")
    return folder if folder is not None else Path(tempfile.gettempdir())


def load_profile(*, force: bool = False) -> HardwareProfile:
    """Return this machine's profile: from this process, else from the cached file, else measured now.

    Threads that ask at the same time wait for one measurement. A cached file that is corrupt, foreign, hostile or
    cannot be written costs a new measurement and one warning.

    Parameters
    ----------
    force : bool
        Measure even if a valid profile is cached.

    Warns
    -----
    PycausetWarning
        If a cached profile cannot be used, the new one cannot be stored, or the GPU's benchmarks fail.

    Examples
    --------
    >>> from pycauset.hardware import load_machine, use_probe
    >>> with use_probe(load_machine("profiles/no_gpu.json")):
    ...     load_profile().gpu is None
    True
    """
    global _loaded
    given = _given.get()
    if given is not None and not force:
        return given
    probe, folder, path = current_probe(), scratch_folder(), cache.profile_path()
    described = probe.measured()
    if described is not None:
        return described  # never cached: it would take the place of the real machine's file
    key = (probe, folder, path)
    with _lock:
        if _loaded is not None and _loaded[0] == key and not force:
            return _loaded[1]
        profile, problems = _load(probe, folder, path, force)
        _loaded = key, profile
    if problems:
        warnings.warn("; ".join(problems), PycausetWarning, stacklevel=2)
    return profile


_given: ContextVar[HardwareProfile | None] = ContextVar("_given", default=None)


@contextlib.contextmanager
def using_profile(profile: HardwareProfile) -> Iterator[None]:
    """Let :func:`load_profile` give this one in the block: that of a run which is taken up again."""
    token = _given.set(profile)
    try:
        yield
    finally:
        _given.reset(token)


def measure(
    folder: Path | None = None,
    *,
    cpu_seconds: float = _CPU_SECONDS,
    disk_seconds: float = _DISK_SECONDS,
    gpu_seconds: float = _GPU_SECONDS,
) -> HardwareProfile:
    """Measure processor, disk and, if there is one, the GPU.

    Parameters
    ----------
    folder : Path, optional
        The folder whose disk is measured; `scratch_folder` if omitted.
    cpu_seconds, disk_seconds, gpu_seconds : float
        Time budgets. A smaller one measures fewer sizes, fewer times; even 0 gives a complete profile.

    Warns
    -----
    PycausetWarning
        If the GPU answers the probe but fails its benchmarks; the profile then has no GPU.
    """
    profile, problem, _ = _measure(current_probe(), folder or scratch_folder(), cpu_seconds, disk_seconds, gpu_seconds)
    if problem:
        warnings.warn(problem, PycausetWarning, stacklevel=2)
    return profile


def _load(probe: Probe, folder: Path, path: Path, force: bool) -> tuple[HardwareProfile, list[str]]:
    """The profile, and what to warn about."""
    problems: list[str] = []
    profile = None
    if not force:
        profile, reason = cache.read_profile(path, fingerprint(probe))
        if reason:
            problems.append(f"the hardware profile {str(path)!r} is not used, the machine was measured again: {reason}")
    if profile is not None:
        profile = profile.model_copy(update={"ram_total": probe.memory_state().total})
        now = probe.disk_info(folder)
        if not profile.disk.assumed and (profile.disk.device, profile.disk.filesystem) == (now.device, now.filesystem):
            return profile, problems
        # Only the scratch folder has moved to another disk, or has become writable.
        profile = profile.model_copy(update={"disk": measure_disk(folder, now, seconds=_DISK_SECONDS)})
    else:
        profile, problem, steady = _measure(probe, folder, _CPU_SECONDS, _DISK_SECONDS, _GPU_SECONDS)
        if problem:
            # A GPU that failed today may work tomorrow: such a profile is not kept beyond this process.
            return profile, [*problems, problem]
        if not steady:  # nor may a busy minute decide for years
            return profile, problems
    reason = cache.write_profile(path, profile)
    if reason:
        problems.append(f"the hardware profile {str(path)!r} was not stored, so the next process measures again: {reason}")
    return profile, problems


def _measure(
    probe: Probe, folder: Path, cpu_seconds: float, disk_seconds: float, gpu_seconds: float
) -> tuple[HardwareProfile, str | None, bool]:
    """The profile, what is wrong with the GPU, and whether nobody else used the processor."""
    described = probe.measured()
    if described is not None:
        return described, None, True
    memory = probe.memory_state()
    begin = time.perf_counter()
    cpu, steady = measure_cpu(probe.cpu_info(), memory.free, seconds=cpu_seconds)
    disk = measure_disk(folder, probe.disk_info(folder), seconds=disk_seconds)
    spent = time.perf_counter() - begin
    gpu: GpuProfile | None = None
    problem = None
    info = probe.gpu_info()
    if info is not None:
        begin = time.perf_counter()
        try:
            gpu = measure_gpu(info, seconds=gpu_seconds)
        except Exception as error:  # a missing cuBLAS, a broken driver, a full GPU: work goes on without it
            problem = f"{info.name} failed its benchmarks and is not used: {type(error).__name__}: {error}"
        else:
            spent += time.perf_counter() - begin - gpu.start_seconds
    profile = HardwareProfile(
        fingerprint=fingerprint(probe),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        audit_seconds=max(spent, 0.0),
        cpu=cpu,
        gpu=gpu,
        disk=disk,
        ram_total=memory.total,
    )
    return profile, problem, steady
