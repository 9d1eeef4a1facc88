"""The AutoSolver at work: lay out the result, choose the route, run it, commit or discard."""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np

from pycauset import config, devices
from pycauset.devices.audit import load_profile
from pycauset.devices.base import Device
from pycauset.devices.numpy import mirror_lower
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.timeline import StreamStatistics
from pycauset.errors import DeviceError, DtypeError, OverlapError, PycausetWarning, ShapeError
from pycauset.governor import governor
from pycauset.solver.factor import Factor, Layout, layout_of
from pycauset.solver.routes import Limits, Route, SolverPlan, in_memory, matmul_routes
from pycauset.storage import ArrayStore, TileStore, aligned_empty, scratch_store
from pycauset.tiling import Rect
from pycauset.units import parse_bytes

__all__ = ["clean_stop", "last_statistics", "multiply", "plan"]

#: What imports, thread stacks and BLAS's own buffers take beside the slots, out of a host limit (60 MB were measured).
_HOST_RESERVE = 72 << 20
_SMALL_RESULT = 64 << 20

_statistics: StreamStatistics | None = None


def last_statistics() -> StreamStatistics | None:
    """Statistics of the last streamed product of this process, for benchmarks and curiosity."""
    return _statistics


def plan(
    operation: str, a: Factor, b: Factor, *, out_on_disk: bool = False, memory: Any = None, gpu_memory: Any = None
) -> SolverPlan:
    """Predict an operation without running it; only ``"matmul"`` so far.

    Raises
    ------
    ConfigError, ShapeError, DtypeError
        For an unknown operation or operands that do not fit.
    """
    from pycauset.errors import ConfigError

    if operation != "matmul":
        raise ConfigError(f"no plan is known for {operation!r}; there is 'matmul'")
    a, b = _row_major(a), _row_major(b)
    layout = layout_of(a, b)
    host, device = _limit(memory, "memory"), _limit(gpu_memory, "gpu_memory")
    in_ram = not out_on_disk and _result_in_ram(layout, host)
    out = _Phantom(layout, in_ram)
    return _plan(a, b, layout, out, new_output=True, host=_beside_result(layout, host) if in_ram else host, device=device)[0]


def _beside_result(layout: Layout, host: int | None) -> int | None:
    """What a result in RAM leaves of the operation's limit."""
    return None if host is None else max(host - layout.shape[0] * layout.shape[1] * layout.dtype.itemsize, 1)


class _Phantom(ArrayStore):
    """Stands for a result that does not exist yet."""

    def __init__(self, layout: Layout, in_ram: bool) -> None:
        super().__init__(np.empty((0, 0), layout.dtype))
        self.shape, self.dtype, self.chunks = layout.shape, layout.dtype, layout.chunks
        self._in_ram = in_ram

    def view(self, rect: Rect) -> np.ndarray[Any, Any] | None:
        return np.broadcast_to(np.empty((), self.dtype), self.shape) if self._in_ram else None


def _limit(value: Any, name: str) -> int | None:
    return parse_bytes(value) if value is not None else config.get(name)


def _limits(host: int | None, device: int | None) -> Limits:
    held = governor()
    kept = devices.kept_pinned_bytes()
    available = held.available("host")
    if host is not None:
        available = min(available, host - min(_HOST_RESERVE, host // 2))
    vram = held.available("device")
    if device is not None:
        vram = min(vram, device) if vram else device
    from pycauset.devices.cupy import WORKSPACE_BYTES

    return Limits(available, min(available, held.available("pinned") + kept), max(0, vram - WORKSPACE_BYTES))


def _result_in_ram(layout: Layout, host: int | None) -> bool:
    nbytes = layout.shape[0] * layout.shape[1] * layout.dtype.itemsize
    if host is not None:
        # Under a limit the result may take half of it; slots need the rest.
        return nbytes <= host // 2
    return nbytes <= max(_SMALL_RESULT, governor().available("host") // 2)


def _plan(
    a: Factor,
    b: Factor,
    layout: Layout,
    out: TileStore,
    *,
    new_output: bool,
    host: int | None,
    device: int | None,
    alpha: complex = 1.0,
    beta: complex = 0.0,
) -> tuple[SolverPlan, MatmulDriver]:
    backend = config.get("backend")
    profile = load_profile()
    gpu_cold = devices.gpu_is_cold()
    gpu: Device | None = None
    if backend != "cpu" and profile.gpu is not None:
        # Nothing starts CUDA for a product that the CPU finishes sooner than CUDA starts.
        flops = 2.0 * layout.shape[0] * layout.shape[1] * a.shape[1]
        if (
            backend == "auto"
            and gpu_cold
            and flops / profile.gemm_rate("cpu", layout.compute, 1000.0) < profile.gpu.start_seconds
        ):
            gpu = None
        else:
            gpu = devices.pretended_gpu(profile, layout.compute) or devices.gpu()
    driver = MatmulDriver(
        a.store, b.store, out, layout.compute, alpha=alpha, beta=beta, op_a=a.op, op_b=b.op, rank_k=layout.kernel == "rank_k"
    )
    routes = matmul_routes(
        a,
        b,
        layout,
        driver,
        out_in_ram=in_memory(out) is not None,
        new_output=new_output,
        profile=profile,
        cpu=devices.cpu(),
        gpu=gpu,
        gpu_cold=gpu_cold,
        limits=_limits(host, device),
        backend=backend,
    )
    return SolverPlan("matmul", layout, a.shape[1], routes, driver.problem(devices.cpu()).flops, backend), driver


def multiply(
    a: Factor,
    b: Factor,
    *,
    out: TileStore | None = None,
    alpha: complex = 1.0,
    beta: complex = 0.0,
    memory: Any = None,
    gpu_memory: Any = None,
    progress: Any = None,
) -> TileStore:
    """``out = alpha a b + beta out``; without ``out`` a new store in RAM if the governor grants it, else in scratch.

    The store comes back committed. When anything fails it is discarded: nothing that looks finished stays.

    Raises
    ------
    ShapeError, DtypeError, OverlapError, MemoryLimitError, StoreError, DeviceError
    """
    a, b = _row_major(a), _row_major(b)
    layout = layout_of(a, b)
    host, device = _limit(memory, "memory"), _limit(gpu_memory, "gpu_memory")
    new_output = out is None
    if out is not None:
        layout = _check_out(a, b, out, layout)
    with clean_stop():
        target = out if out is not None else _new_result(layout, host)
        try:
            if out is not None:
                out.begin_write()
            _run(a, b, layout, target, new_output=new_output, host=host, device=device, alpha=alpha, beta=beta, progress=progress)
            target.commit()
        except BaseException:
            target.discard()
            raise
    return target


def _row_major(factor: Factor) -> Factor:
    """A column-major array is a row-major one transposed: kernels and copies then run along its rows."""
    array = in_memory(factor.store)
    if array is None or factor.op == "H" or array.flags.c_contiguous or not array.flags.f_contiguous:
        return factor
    return Factor(ArrayStore(array.T), "T" if factor.op == "N" else "N", factor.flags)


def _check_out(a: Factor, b: Factor, out: TileStore, layout: Layout) -> Layout:
    if out.shape != layout.shape:
        raise ShapeError(
            f"matmul: out has shape {out.shape}, but the product of {a.shape} and {b.shape} has shape {layout.shape}"
        )
    if not np.can_cast(layout.dtype, out.dtype, "same_kind"):
        raise DtypeError(
            f"matmul: the product is {layout.dtype}, which out of {out.dtype} cannot hold; give an out of {layout.dtype}"
        )
    for name, factor in (("first", a), ("second", b)):
        if out.overlaps(factor.store):
            raise OverlapError(
                f"matmul: out {out!r} shares storage with the {name} operand, "
                "which would be overwritten while it is read; give another out"
            )
    compute = layout.compute
    if out.structure not in ("full", layout.structure):
        raise ShapeError(f"matmul: out is stored as {out.structure}, but the product is {layout.structure}; give a full out")
    if out.structure == "full" and in_memory(out) is None and layout.kernel == "rank_k":
        layout = layout._replace(kernel="gemm", structure="full")  # all of it is stored, so all of it is computed
    return layout._replace(dtype=out.dtype, compute=compute, chunks=out.chunks)


def _new_result(layout: Layout, host: int | None) -> TileStore:
    """RAM under a ticket that lives as long as the array, else a scratch store."""
    if _result_in_ram(layout, host):
        nbytes = layout.shape[0] * layout.shape[1] * layout.dtype.itemsize
        ticket = governor().request("host", nbytes, owner=f"a result of shape {layout.shape}")
        if ticket is not None:
            array = aligned_empty(layout.shape, layout.dtype) if nbytes else np.empty(layout.shape, layout.dtype)
            # Views keep the array's base alive, not the array.
            weakref.finalize(array.base if isinstance(array.base, np.ndarray) else array, ticket.release)
            return ArrayStore(array)
    return scratch_store(layout.shape, layout.dtype, chunks=layout.chunks, structure=layout.structure)


def _run(
    a: Factor,
    b: Factor,
    layout: Layout,
    out: TileStore,
    *,
    new_output: bool,
    host: int | None,
    device: int | None,
    alpha: complex,
    beta: complex,
    progress: Any,
) -> None:
    m, n = layout.shape
    if m == 0 or n == 0:
        return
    if new_output and in_memory(out) is not None:
        host = _beside_result(layout, host)
    solution, driver = _plan(a, b, layout, out, new_output=new_output, host=host, device=device, alpha=alpha, beta=beta)
    route = solution.route
    try:
        _take(route, a, b, layout, out, driver, solution, host, device, alpha, beta, progress)
    except DeviceError as error:
        spare = [r for r in solution.routes if r.device == "cpu" and not r.refused]
        if route.device != "gpu" or not spare or beta != 0:
            raise
        import warnings

        warnings.warn(f"the GPU failed ({error}); the product is computed again on the CPU", PycausetWarning, stacklevel=4)
        _take(spare[0], a, b, layout, out, driver, solution, host, device, alpha, beta, progress)
    array = in_memory(out)
    if layout.kernel == "rank_k" and route.streamed and array is not None:
        mirror_lower(array, layout.structure == "hermitian")


def _take(
    route: Route,
    a: Factor,
    b: Factor,
    layout: Layout,
    out: TileStore,
    driver: MatmulDriver,
    solution: SolverPlan,
    host: int | None,
    device: int | None,
    alpha: complex,
    beta: complex,
    progress: Any,
) -> None:
    global _statistics
    m, n = layout.shape
    with governor().scope(host=host, device=device, owner=f"matmul ({m}, {a.shape[1]}) @ ({a.shape[1]}, {n})") as scope:
        if not route.streamed:
            from pycauset.solver.incore import matmul_in_core

            _statistics = None
            matmul_in_core(route, a, b, layout, out, alpha, beta, scope)
            return
        assert route.plan is not None
        where: Device | None = devices.cpu() if route.device == "cpu" else devices.gpu()
        if where is None:
            raise DeviceError("the GPU is gone; the work goes to the CPU")
        from pycauset.progress import reporter

        with (
            reporter(progress, f"matmul on the {where.name}", solution.flops) as report,
            AsyncStreamer(
                where,
                driver.operands(route.plan),
                scope,
                host_slots=route.plan.host_slots,
                host_slot_bytes=route.plan.host_slot_bytes,
                readers=driver.readers(where),
                writers=driver.writers(where),
                on_progress=report,
            ) as streamer,
        ):
            streamer.run(driver.tasks(route.plan))
            _statistics = streamer.statistics()


@contextlib.contextmanager
def clean_stop() -> Iterator[None]:
    """Let SIGTERM end the operation as Ctrl-C does, by an exception: threads stop, tickets return, nothing half-written stays.

    Only in the main thread, and only where the program has no handler of its own.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
