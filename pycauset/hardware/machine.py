"""Described machines: a JSON file that answers every question of the probe and holds what the benchmarks would find.

The files in ``profiles/`` are such machines. Tests and documentation plan for a laptop's GPU, or for a container of
256 MB, without owning one; CuPy is neither needed nor imitated.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pycauset.errors import ConfigError
from pycauset.hardware.probe import CpuInfo, DiskInfo, GpuInfo, MemoryState, fingerprint
from pycauset.hardware.profile import HardwareProfile

__all__ = ["FakeMachine", "describe_machine", "load_machine"]

_LARGEST = 2**20


class _Answers(BaseModel):
    """The probe's answers; the dataclasses of `probe` are validated by pydantic as they stand."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu: CpuInfo
    memory: MemoryState
    gpu: GpuInfo | None = None
    gpu_free: Annotated[int, Field(ge=0)] = 0
    disk: DiskInfo
    libraries: dict[str, str]


class FakeMachine:
    """A machine that exists only as a description; give it to `pycauset.hardware.use_probe`.

    Parameters
    ----------
    answers : dict
        Keys ``cpu``, ``memory``, ``gpu``, ``gpu_free``, ``disk`` and ``libraries``, as in the files of ``profiles/``.
    profile : dict
        The measured figures; the fingerprint may be left out, since it follows from the answers.
    """

    def __init__(self, answers: dict[str, Any], profile: dict[str, Any]) -> None:
        self._answers = _Answers.model_validate(answers)
        self.profile = HardwareProfile.model_validate({**profile, "fingerprint": fingerprint(self)})

    def cpu_info(self) -> CpuInfo:
        """The described processor."""
        return self._answers.cpu

    def memory_state(self) -> MemoryState:
        """The described memory, which never changes."""
        return self._answers.memory

    def gpu_info(self, device: int = 0) -> GpuInfo | None:
        """The described GPU; there is at most one."""
        return self._answers.gpu if device == 0 else None

    def gpu_memory(self, device: int = 0) -> MemoryState | None:
        """Total and free memory of the described GPU."""
        gpu = self.gpu_info(device)
        return None if gpu is None else MemoryState(gpu.memory, self._answers.gpu_free)

    def disk_info(self, folder: Path) -> DiskInfo:
        """One disk, whatever the folder."""
        return self._answers.disk

    def library_versions(self) -> dict[str, str]:
        """The described versions."""
        return dict(self._answers.libraries)

    def measured(self) -> HardwareProfile:
        """The described measurements, with the fingerprint of the answers."""
        return self.profile


def load_machine(path: str | os.PathLike[str]) -> FakeMachine:
    """Read a described machine from a JSON file such as those in ``profiles/``.

    Raises
    ------
    ConfigError
        If the file cannot be read or does not describe a machine; the message names the first wrong field.

    Examples
    --------
    >>> machine = load_machine("profiles/laptop_8gb.json")
    >>> machine.gpu_info().memory
    8589934592
    >>> machine.profile.gpu.h2d_pinned > machine.profile.gpu.h2d_pageable
    True
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path} is {path.stat().st_size} bytes; a machine's description has at most {_LARGEST}")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no description of a machine: {error}") from error
    if not isinstance(content, dict) or not {"machine", "profile"} <= content.keys():
        raise ConfigError(f"{path} is no description of a machine: it needs the keys 'machine' and 'profile'")
    try:
        return FakeMachine(content["machine"], content["profile"])
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"])) or "profile"
        raise ConfigError(f"{path} is no description of a machine: {place}: {first['msg']}") from error


def describe_machine(path: str | os.PathLike[str], profile: HardwareProfile, folder: Path) -> None:
    """Write the machine that this process runs on, with its measured ``profile``, as a file that `load_machine` reads.

    Parameters
    ----------
    path : path-like
        The JSON file to write.
    profile : HardwareProfile
        From `pycauset.cuda.benchmark`.
    folder : Path
        The folder whose disk was measured.
    """
    from pycauset.hardware.probe import current_probe

    probe = current_probe()
    gpu_memory = probe.gpu_memory()
    answers = _Answers(
        cpu=probe.cpu_info(),
        memory=probe.memory_state(),
        gpu=probe.gpu_info(),
        gpu_free=0 if gpu_memory is None else gpu_memory.free,
        disk=probe.disk_info(folder),
        libraries=probe.library_versions(),
    )
    measured = profile.model_dump(mode="json", exclude={"fingerprint"})
    # The scratch folder's name is the user's business, its speed is not.
    measured["disk"]["folder"] = "scratch"
    content = {"machine": answers.model_dump(mode="json"), "profile": measured}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")
