"""The cost model: every way to compute a product on this machine, its predicted seconds, bytes and memory.

In core the seed's equation holds, with the rate as a function of size::

    T_gpu = bytes / BW_link + ops / FLOPS_gpu(n) + T_latency        T_cpu = ops / FLOPS_cpu(n)

Streamed, each stage (disk, upload, compute, download) takes its bytes or operations over its rate, the stages overlap, and
the slowest counts, plus filling and draining the pipeline. The rule is strict: the least predicted time wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import FRACTIONS, Place, Rates
from pycauset.drivers.blocked import BlockedPlan
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits, MatmulPlan
from pycauset.drivers.slots import temporary_bytes
from pycauset.drivers.triangular_product import TriangularProductDriver
from pycauset.errors import BackendError, MemoryLimitError
from pycauset.hardware.profile import HardwareProfile
from pycauset.solver.factor import Factor, Layout, in_memory
from pycauset.solver.run import Limits
from pycauset.storage import ForeignStore, TileStore
from pycauset.units import format_bytes, format_flops, format_seconds

__all__ = ["ProductDriver", "Route", "SolverPlan", "matmul_routes"]

#: The drivers of products.
ProductDriver = MatmulDriver | TriangularProductDriver

#: Starting lanes and planning: what a streamed product costs before its first tile.
_STREAM_START = {"cpu": 2e-3, "gpu": 20e-3}
#: What it costs on top to stage ordinary memory for a GPU: threads that wake up, lanes that start one after the other
#: (measured on the H200's machine: streams of less than 100 ms took 10 to 50 ms longer than their stages).
_STAGED_START = 18e-3
#: Rate of copies between the GPU and whole arrays in ordinary memory, to that of the audit's small buffer (same place).
_WHOLE_ARRAYS = 0.75


@dataclass(frozen=True, slots=True)
class Route:
    """One way to compute the product, or the reason why it cannot be taken (then ``seconds`` is infinite)."""

    name: str
    device: str
    streamed: bool
    seconds: float
    stages: tuple[tuple[str, float], ...] = ()
    host_bytes: int = 0
    device_bytes: int = 0
    refused: str = ""
    plan: MatmulPlan | BlockedPlan | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SolverPlan:
    """The chosen route and the ones that lost.

    Attributes
    ----------
    routes : tuple of Route
        All routes, the fastest first.
    flops : float
        Floating-point operations of the product.
    limits : Limits
        What the routes were planned within.
    result_bytes : int
        Host memory of the result, if it is a new array in RAM; beside what the route takes.
    enough : str
        If every route is refused: the least ``memory=`` with which one is not, such as ``"140MB"``; empty if there is none.
    """

    operation: str
    layout: Layout
    depth: int
    routes: tuple[Route, ...]
    flops: float
    forced: str = "auto"
    limits: Limits | None = None
    result_bytes: int = 0
    enough: str = ""

    @property
    def route(self) -> Route:
        """The route that will be taken.

        Raises
        ------
        MemoryLimitError, BackendError
            If none can; the message gives every route's reason.
        """
        best = self.routes[0]
        if best.refused:
            reasons = "; ".join(f"{route.name}: {route.refused}" for route in self.routes)
            kind = (
                MemoryLimitError
                if any(route.plan is None and "memory" in route.refused for route in self.routes)
                else BackendError
            )
            reserve = f"; {self._reserve()}" if kind is MemoryLimitError and self._reserve() else ""
            enough = f"; memory={self.enough!r} is enough" if self.enough else ""
            raise kind(f"{self.operation} of shape {self.layout.shape} has no way through: {reasons}{reserve}{enough}")
        return best

    @property
    def seconds(self) -> float:
        """Predicted seconds of the chosen route."""
        return self.route.seconds

    def _reserve(self) -> str:
        """What of the operation's limit is not for tiles, and why."""
        limits = self.limits
        if limits is None or limits.memory is None:
            return ""
        result = f" and {format_bytes(self.result_bytes)} hold the result" if self.result_bytes else ""
        return (
            f"of memory={format_bytes(limits.memory + self.result_bytes)}, {format_bytes(limits.reserve)} are kept for "
            f"Python's modules, thread stacks and BLAS buffers{result}"
        )

    def explain(self) -> str:
        """Predicted seconds, bytes on each link against the lower bound, memory, and why this route won."""
        best = self.route
        lines = [
            self._title(),
            f"route: {best.name}, about {format_seconds(best.seconds)} "
            f"({format_flops(self.flops / best.seconds if best.seconds else 0)})",
        ]
        if best.stages:
            lines.append(
                "stages: "
                + ", ".join(f"{name} {format_seconds(s)}" for name, s in best.stages if s > 0)
                + " (overlapped: the longest counts)"
            )
        plan = best.plan
        if plan is not None:
            lines += [self._tiles(plan), *self._bytes(plan)]
        lines.append(
            f"memory: {format_bytes(best.host_bytes)} host"
            + (f" and {format_bytes(self.result_bytes)} for the result" if self.result_bytes else "")
            + (f", {format_bytes(best.device_bytes)} GPU" if best.device_bytes else "")
            + (f" ({self._reserve()})" if self._reserve() else "")
        )
        why = "forced" if self.forced != "auto" else "the least predicted time"
        others = [f"{r.name} {'cannot: ' + r.refused if r.refused else format_seconds(r.seconds)}" for r in self.routes[1:]]
        lines.append(f"why: {why}" + ("; " + "; ".join(others) if others else ""))
        return "\n".join(lines)

    def _title(self) -> str:
        m, n = self.layout.shape
        return (
            f"{self.operation}: ({m}, {self.depth}) @ ({self.depth}, {n}) -> {self.layout.dtype}, "
            f"computed in {self.layout.compute} by {self.layout.kernel}"
        )

    def _tiles(self, plan: Any) -> str:
        if not isinstance(plan, MatmulPlan):
            order = {"left": ", left-looking", "right": ", right-looking", "triangle": ", triangle blocks"}.get(plan.variant, "")
            return (
                f"tiles: {plan.tile[0]} × {plan.tile[1]}; block of {plan.block[0]} × {plan.block[1]} tiles resident, "
                f"{plan.tasks} tasks{order}"
            )
        tile_m, tile_n, tile_k = plan.tile
        return (
            f"tiles: C {tile_m} × {tile_n}, depth {tile_k}; block of {plan.block[0]} × {plan.block[1]} tiles resident, "
            f"{plan.blocks[0]} × {plan.blocks[1]} blocks, {plan.tasks} tasks"
        )

    def _least(self, plan: Any) -> float:
        """The fewest bytes over the link that feeds the device."""
        return float(plan.least if isinstance(plan, MatmulPlan) else plan.bound or plan.link_bytes)

    def _bytes(self, plan: Any) -> list[str]:
        lines = []
        least = self._least(plan)
        if plan.link_bytes:
            lines.append(
                f"{'disk' if plan.unified else 'PCIe'}: {format_bytes(plan.link_bytes)}, {plan.link_bytes / least:.2f} × the "
                f"lower bound, which is {format_bytes(least)} here"
            )
        if not plan.unified and plan.disk_read + plan.disk_write:
            lines.append(f"disk: {format_bytes(plan.disk_read)} read, {format_bytes(plan.disk_write)} written")
        return lines


def matmul_routes(
    a: Factor,
    b: Factor,
    layout: Layout,
    driver: ProductDriver,
    *,
    out_in_ram: bool,
    new_output: bool,
    profile: HardwareProfile,
    cpu: Device,
    gpu: Device | None,
    gpu_cold: bool,
    limits: Limits,
    backend: str,
    thorough: bool = False,
    only: str | None = None,
) -> tuple[Route, ...]:
    """Every route with its predicted seconds, the fastest first; ``thorough`` plans also what cannot be the fastest.

    ``only`` is the one route that the caller is going to take: planned even if it cannot be the fastest.
    """
    m, n = layout.shape
    k = a.shape[1]
    stores = (a.store, b.store)
    dtype = layout.compute
    size = dtype.itemsize
    # Bytes that in-core work adds: operands that are not yet arrays of the computing type, and the result.
    loads = sum(_elements(s) * size for s in stores if in_memory(s) is None or s.dtype != dtype)
    fresh = m * n * size if not out_in_ram or layout.dtype != dtype else 0  # a result in RAM has its ticket already
    untouched = m * n * size if new_output else fresh
    disk = sum(s.nbytes for s in stores if _is_stored(s))
    disk_seconds = disk / profile.disk.read_bandwidth + (
        0 if out_in_ram else m * n * layout.dtype.itemsize / profile.disk.write_bandwidth
    )
    touch = untouched / profile.cpu.first_touch_bandwidth if untouched > 1 << 20 else 0.0
    convert = loads / profile.cpu.copy_bandwidth
    routes = []
    flops = (8.0 if dtype.kind == "c" else 2.0) * m * n * k
    half = 1.0 if layout.kernel == "gemm" else 0.5

    if loads + fresh > limits.host:
        routes.append(
            _refuse(
                "NumPy in core",
                "cpu",
                f"its arrays take {format_bytes(loads + fresh)} of memory, the limit leaves {format_bytes(limits.host)}",
            )
        )
    else:
        speed = FRACTIONS["cpu"]["trmm"][0] if layout.kernel == "trmm" else 1.0
        seconds = profile.gemm_seconds("cpu", dtype, m, n, k) * half / speed + touch + convert + disk_seconds
        routes.append(
            Route(
                "NumPy in core",
                "cpu",
                False,
                seconds,
                host_bytes=loads + fresh,
            )
        )

    def to_beat(name: str) -> float:
        """Seconds that a streamed route must be able to reach to be worth planning."""
        if thorough or only == name:
            return float("inf")
        return min((route.seconds for route in routes if backend in ("auto", route.device)), default=float("inf"))

    best = to_beat("streamed NumPy")
    streamed = _streamed("streamed NumPy", cpu, driver, profile, dtype, limits, flops * half, 0.0, best)
    in_core = routes[0]
    if out_in_ram and layout.kernel != "rank_k" and all(in_memory(s) is not None for s in stores) and not in_core.refused:
        # The same cores multiply the same arrays, in pieces: no noise of the audit makes that faster.
        streamed = replace(streamed, seconds=max(streamed.seconds, in_core.seconds + _STREAM_START["cpu"]))
    routes.append(streamed)
    if profile.gpu is not None and gpu is not None:
        start = profile.gpu.start_seconds if gpu_cold else 0.0
        device_need = size * (_elements(a.store) + _elements(b.store) + m * n)
        if device_need > limits.device:
            routes.append(
                _refuse(
                    "CuPy in core",
                    "gpu",
                    f"its arrays take {format_bytes(device_need)} of GPU memory, the limit leaves {format_bytes(limits.device)}",
                )
            )
        elif loads + fresh > limits.host:
            routes.append(
                _refuse(
                    "CuPy in core",
                    "gpu",
                    f"its arrays take {format_bytes(loads + fresh)} of memory, the limit leaves {format_bytes(limits.host)}",
                )
            )
        else:
            up = sum(_copy_seconds(profile, "h2d", _elements(s) * size, gpu.reaches(s, dtype)) for s in stores)
            down = _copy_seconds(profile, "d2h", m * n * size, False)
            compute = profile.gemm_seconds("gpu", dtype, m, n, k)
            routes.append(
                Route(
                    "CuPy in core",
                    "gpu",
                    False,
                    up + down + compute + touch + convert + disk_seconds + start + 14 * profile.gpu.launch_seconds,
                    (("upload", up), ("compute", compute), ("download", down)),
                    host_bytes=loads + fresh,
                    device_bytes=device_need,
                )
            )
        best = to_beat("streamed CuPy")
        routes.append(_streamed("streamed CuPy", gpu, driver, profile, dtype, limits, flops * half, start, best))
    elif backend == "gpu":
        routes.append(_refuse("CuPy", "gpu", "there is no usable GPU; call pycauset.cuda.info() for the reason"))
    if backend != "auto":
        routes = [route for route in routes if route.device == backend]
    if only is not None:
        routes = [route for route in routes if route.name == only]
        if not routes:
            raise BackendError(f"there is no route {only!r} here; those of plan(...).routes can be named")
    return tuple(sorted(routes, key=lambda route: route.seconds))


def _copy_seconds(profile: HardwareProfile, direction: Literal["h2d", "d2h"], nbytes: int, pinned: bool) -> float:
    """Seconds of one copy of a whole array between host and GPU."""
    seconds = profile.transfer_seconds(direction, nbytes, pinned)
    return seconds if pinned or nbytes < 16 << 20 else seconds / _WHOLE_ARRAYS


def _is_stored(store: TileStore) -> bool:
    """Whether elements come from a disk (or another library): neither an array in memory nor computed from their indices."""
    return in_memory(store) is None and (
        store.path is not None or store.generation is not None or isinstance(store, ForeignStore)
    )


def _elements(store: TileStore) -> int:
    return store.shape[0] * store.shape[1]


def _refuse(name: str, device: str, reason: str) -> Route:
    return Route(name, device, False, float("inf"), refused=reason)


def _streamed(
    name: str,
    device: Device,
    driver: ProductDriver,
    profile: HardwareProfile,
    dtype: np.dtype[Any],
    limits: Limits,
    flops: float,
    start: float,
    best: float,
) -> Route:
    # Planning takes milliseconds: not worth it where even the fastest kernel, fed for nothing, would lose.
    curve = (profile.cpu if device.kind == "cpu" or profile.gpu is None else profile.gpu).gemm[dtype.name]  # type: ignore[index]
    places: set[Place] = set()
    for store in driver.stores:
        if not device.reaches(store, dtype):
            places.add("disk" if _is_stored(store) else "ram")
    start += _STREAM_START[device.kind] + (_STAGED_START if "ram" in places and not device.unified else 0.0)
    least = start + flops / max(point.flops for point in curve)
    if least > best:
        return Route(name, device.kind, True, least)
    rates = Rates(profile, device.kind, dtype, places or {"pinned"})
    try:
        plan, temporary = _plan_beside_buffers(device, driver, limits, places, rates)
    except MemoryLimitError as error:
        return _refuse(name, device.kind, str(error))
    seconds = plan.seconds + start
    if not device.unified and profile.gpu is not None and not (places <= {"pinned"}):
        # Slabs are pinned as they are first used; what reads have to wait for is about the first gigabyte.
        seconds += max(0, min(plan.host_bytes, 1 << 30) - limits.kept) / profile.gpu.pin_bandwidth
    host = temporary + (plan.device_bytes if plan.unified else plan.host_bytes)
    return Route(name, device.kind, True, seconds, plan.stages, host, 0 if plan.unified else plan.device_bytes, plan=plan)


def _plan_beside_buffers(
    device: Device, driver: Any, limits: Limits, places: set[Place], rates: Rates
) -> tuple[MatmulPlan | BlockedPlan, int]:
    """A plan whose slots leave room for the buffers of reading and writing threads, and the bytes of those."""
    temporary = 0
    for _ in range(3):  # the buffers depend on the tiles, which depend on the room that the buffers leave
        left = replace(limits, host=max(0, limits.host - temporary))
        try:
            plan = driver.plan(device, _slot_limits(device, left, places), rates)
        except MemoryLimitError as error:
            if not temporary:
                raise
            threads = f"of {format_bytes(limits.host)} left, {format_bytes(temporary)} are needed by reading and writing threads"
            raise MemoryLimitError(f"{error} ({threads})") from None
        needed = temporary_bytes(device, driver.operands(plan), driver.readers(device), driver.writers(device))
        if needed <= temporary or needed + (plan.device_bytes if plan.unified else plan.host_bytes) <= limits.host:
            return plan, needed
        temporary = needed
    raise MemoryLimitError(
        f"its threads need {format_bytes(temporary)} of memory for tiles on their way, "
        f"the limit leaves {format_bytes(limits.host)}; raise the limit, or store the matrices in smaller chunks"
    )


def _slot_limits(device: Device, limits: Limits, places: set[Place]) -> MatmulLimits:
    """What slots may take. Operands in RAM are only staged: caching what RAM holds already would waste pinned memory."""
    if device.unified:
        return MatmulLimits(limits.host)
    host = min(limits.host, limits.pinned) if limits.pinned >= 64 << 20 else limits.host
    if "disk" not in places:
        host = min(host, 512 << 20)
    return MatmulLimits(limits.device, host)
