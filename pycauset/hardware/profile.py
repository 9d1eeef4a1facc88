"""What was measured on one machine: the model of ``hardware_profile.json`` and the seconds it predicts.

The file is read back from a place that anybody may have scribbled on, so every number has a range outside of which no
machine exists, every text has a length, and nothing unknown is accepted. All sizes are in bytes, all times in seconds,
all rates in floating-point operations or bytes a second. A complex multiply-add counts as 8 operations, a real one as 2.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pycauset.errors import BackendError, DtypeError

__all__ = [
    "DTYPES",
    "PROFILE_VERSION",
    "CpuProfile",
    "DiskProfile",
    "GpuProfile",
    "HardwareProfile",
    "RatePoint",
    "TransferPoint",
    "gemm_flops",
]

PROFILE_VERSION: Final = 1
"""Grows when a file of the last release would be misread."""


# Printable text only: names from the file end up on terminals.
Text = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
FolderText = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Flops = Annotated[float, Field(ge=1e4, le=1e18)]
Bandwidth = Annotated[float, Field(ge=1e3, le=1e15)]
Seconds = Annotated[float, Field(ge=1e-10, le=1e3)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
DtypeName = Literal["float32", "float64", "complex64", "complex128"]
LinkName = Literal["h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable"]

DTYPES: Final[tuple[DtypeName, ...]] = ("float32", "float64", "complex64", "complex128")
"""The element types that every ``gemm`` table holds."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RatePoint(_Model):
    """A product of two n × n matrices runs at ``flops`` operations a second."""

    n: Annotated[int, Field(ge=1, le=2**20)]
    flops: Flops


class TransferPoint(_Model):
    """One copy of ``nbytes`` takes ``seconds``, from the call until the data has arrived."""

    nbytes: Annotated[int, Field(ge=1, le=2**50)]
    seconds: Seconds


Curve = Annotated[list[RatePoint], Field(min_length=1, max_length=64)]
Transfers = Annotated[list[TransferPoint], Field(min_length=1, max_length=64)]


def _check_gemm(gemm: dict[DtypeName, Curve]) -> None:
    missing = [name for name in DTYPES if name not in gemm]
    if missing:
        raise ValueError(f"gemm lacks {', '.join(missing)}")
    for name, points in gemm.items():
        if any(a.n >= b.n for a, b in itertools.pairwise(points)):
            raise ValueError(f"gemm[{name!r}] is not in ascending order of n")


class CpuProfile(_Model):
    """The processor: products through NumPy on all its cores, copies, and what a call costs before any work is done."""

    name: Text
    cores: Annotated[int, Field(ge=1, le=2**16)]
    gemm: dict[DtypeName, Curve]
    copy_bandwidth: Bandwidth
    """Bytes copied a second by one thread (each byte is read once and written once)."""
    copy_bandwidth_all: Bandwidth
    """The same by all cores together."""
    first_touch_bandwidth: Bandwidth
    """Bytes a second at which fresh memory can be written for the first time."""
    call_seconds: Seconds
    """One ``np.matmul`` of two tiny matrices into an existing output."""

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        _check_gemm(self.gemm)
        return self


class GpuProfile(_Model):
    """One graphics processor and its link to the host. Bandwidths are those of large copies."""

    name: Text
    compute_capability: Text
    memory: Bytes
    gemm: dict[DtypeName, Curve]
    """Rates of products launched back to back, operands in the GPU's memory."""
    h2d_pinned: Bandwidth
    d2h_pinned: Bandwidth
    duplex_pinned: Bandwidth
    """Both directions at once, summed."""
    h2d_pageable: Bandwidth
    d2h_pageable: Bandwidth
    transfers: dict[LinkName, Transfers] = Field(default_factory=dict)
    """Seconds of single copies by size; a link without a curve is computed from its bandwidth and ``launch_seconds``."""
    launch_seconds: Seconds
    """Launching one tiny kernel and waiting for it."""
    copy_bandwidth: Bandwidth
    """Bytes copied a second inside the GPU's memory (each byte is read once and written once)."""
    pin_bandwidth: Bandwidth
    """Bytes of page-locked host memory that can be allocated a second."""
    start_seconds: Seconds
    """Creating the CUDA context and the cuBLAS handle, once in a process."""
    context_bytes: Bytes
    """GPU memory that the context and the cuBLAS workspace take, outside every limit."""

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        _check_gemm(self.gemm)
        for link, points in self.transfers.items():
            if any(a.nbytes >= b.nbytes for a, b in itertools.pairwise(points)):
                raise ValueError(f"transfers[{link!r}] is not in ascending order of nbytes")
        return self


class DiskProfile(_Model):
    """The file system of the scratch folder, with direct I/O where it allows that."""

    folder: FolderText
    filesystem: Text = ""
    device: FolderText = ""
    read_bandwidth: Bandwidth
    write_bandwidth: Bandwidth
    mixed_bandwidth: Bandwidth | None = None
    """Reading and writing at once, summed; None where it was not measured."""
    direct: bool
    """Whether O_DIRECT works here."""
    latency_seconds: Seconds
    """Reading one 4096-byte block."""
    assumed: bool = False
    """The folder could not be written, so the figures are cautious guesses."""


class HardwareProfile(_Model):
    """One machine, measured.

    Examples
    --------
    >>> from pycauset.hardware import load_machine
    >>> profile = load_machine("profiles/h200.json").profile
    >>> profile.gpu.name
    'NVIDIA H200'
    >>> in_ram = profile.gemm_seconds("cpu", "float64", 8192, 8192, 8192)
    >>> in_vram = profile.gemm_seconds("gpu", "float64", 8192, 8192, 8192)
    >>> 30 < in_ram / in_vram < 100
    True
    """

    version: Literal[1] = PROFILE_VERSION
    fingerprint: dict[Text, Text] = Field(max_length=32)
    """What the figures depend on (processors, drivers, libraries); a machine that answers otherwise is measured again."""
    measured_at: Text
    """UTC, ISO 8601."""
    audit_seconds: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    """How long the measurement took."""
    cpu: CpuProfile
    gpu: GpuProfile | None = None
    disk: DiskProfile
    ram_total: Bytes

    def gemm_rate(self, kind: Literal["cpu", "gpu"], dtype: Any, n: float) -> float:
        """Operations a second of a matrix product in the memory of ``kind``.

        Parameters
        ----------
        kind : {"cpu", "gpu"}
        dtype : float32, float64, complex64 or complex128
        n : float
            Geometric mean of the three sizes. Between measured sizes the rate is interpolated on logarithmic axes;
            outside of them it stays what it was at the nearest one.

        Raises
        ------
        BackendError
            If ``kind`` is "gpu" and the profile has none.
        DtypeError
            If no product of this element type is measured.
        """
        points = self._gemm(kind)[_dtype_name(dtype)]
        return _interpolate([(p.n, p.flops) for p in points], max(n, 1e-9))

    def gemm_seconds(self, kind: Literal["cpu", "gpu"], dtype: Any, m: int, n: int, k: int) -> float:
        """Seconds of one call that multiplies (m, k) by (k, n), from the call to the result, operands and output in place.

        Products too thin for the arithmetic to matter are bounded by the memory's bandwidth, tiny ones by the call.
        Moving data between host and GPU, touching a fresh output and starting CUDA are not in it.

        Raises
        ------
        BackendError, DtypeError
            As `gemm_rate`.
        """
        name = _dtype_name(dtype)
        mean = (float(m) * n * k) ** (1 / 3)
        rate = self.gemm_rate(kind, name, mean)
        arithmetic = gemm_flops(name, m, n, k) / rate
        touched = np.dtype(name).itemsize * (float(m) * k + float(k) * n + float(m) * n)
        if kind == "cpu":
            # A copied byte is read and written: twice the traffic of a byte that is only read.
            floor = touched / (2 * self.cpu.copy_bandwidth_all)
            smallest = self.cpu.gemm[name][0]
            if mean >= smallest.n:
                return max(arithmetic, floor)  # the measured rates contain the call
            measured = gemm_flops(name, smallest.n, smallest.n, smallest.n) / smallest.flops
            call = min(self.cpu.call_seconds, measured)
            return max(call + arithmetic * (1 - call / measured), floor)
        assert self.gpu is not None  # _gemm has raised
        return self.gpu.launch_seconds + max(arithmetic, touched / (2 * self.gpu.copy_bandwidth))

    def transfer_seconds(self, direction: Literal["h2d", "d2h"], nbytes: int, pinned: bool) -> float:
        """Seconds of one copy of ``nbytes`` between host and GPU, from the call until the data has arrived.

        Parameters
        ----------
        direction : {"h2d", "d2h"}
            To the GPU, or back.
        nbytes : int
        pinned : bool
            Whether the host side is page-locked.

        Raises
        ------
        BackendError
            If the profile has no GPU.
        """
        if self.gpu is None:
            raise BackendError(f"the profile of {self.cpu.name} has no GPU; seconds of a transfer need one")
        if nbytes <= 0:
            return 0.0
        link: LinkName = f"{direction}_{'pinned' if pinned else 'pageable'}"  # type: ignore[assignment]
        bandwidth = float(getattr(self.gpu, link))
        points = self.gpu.transfers.get(link)
        if not points:
            return self.gpu.launch_seconds + nbytes / bandwidth
        last = points[-1]
        if nbytes > last.nbytes:
            return last.seconds + (nbytes - last.nbytes) / bandwidth
        return _interpolate([(p.nbytes, p.seconds) for p in points], nbytes)

    def _gemm(self, kind: str) -> dict[DtypeName, Curve]:
        if kind == "cpu":
            return self.cpu.gemm
        if self.gpu is None:
            raise BackendError(f"the profile of {self.cpu.name} has no GPU; ask for the rate of 'cpu'")
        return self.gpu.gemm


def gemm_flops(dtype: Any, m: int, n: int, k: int) -> float:
    """Floating-point operations of (m, k) times (k, n): 2mnk real ones, four times as many for complex elements.

    Examples
    --------
    >>> gemm_flops("float64", 10, 20, 30), gemm_flops("complex64", 10, 20, 30)
    (12000.0, 48000.0)
    """
    return (8.0 if np.dtype(dtype).kind == "c" else 2.0) * m * n * k


def _dtype_name(dtype: Any) -> DtypeName:
    wanted = np.dtype(dtype).name
    for name in DTYPES:
        if name == wanted:
            return name
    raise DtypeError(f"products of {wanted} are not measured; ask for one of {', '.join(DTYPES)}, the type it is computed in")


def _interpolate(points: list[tuple[float, float]], x: float) -> float:
    """Interpolate linearly between the logarithms; constant beyond both ends."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            weight = math.log(x / x0) / math.log(x1 / x0)
            return math.exp((1 - weight) * math.log(y0) + weight * math.log(y1))
    return points[-1][1]
