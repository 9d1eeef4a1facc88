"""The AutoSolver for blocked algorithms (Cholesky, triangular solves, …): choose device and plan, run it, resume it.

Where everything lies in RAM one library call may do (*in core*); else the driver is streamed on the CPU or the GPU, whichever the
model says is faster. A run with a journal goes on by the plan and on the device that the journal names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pycauset import config, devices
from pycauset.devices.audit import load_profile
from pycauset.devices.base import Device
from pycauset.devices.rates import FRACTIONS
from pycauset.drivers.blocked import BlockedPlan
from pycauset.errors import BackendError, DeviceError, MemoryLimitError, PycausetWarning
from pycauset.hardware.arithmetic import gpu_arithmetic
from pycauset.solver.circumstances import gpu_is_cold, limits_now
from pycauset.solver.routes import Route, _refuse, _streamed
from pycauset.solver.run import (
    Limits,
    clean_stop,
    host_reserve,
    least_memory,
    named_limit,
    operation_limits,
    record_statistics,
    run_streamed,
)
from pycauset.storage.identity import differences
from pycauset.storage.journalfile import RESTART
from pycauset.units import format_bytes

__all__ = ["BlockedOperation", "in_core_seconds", "last_plan", "routes", "run"]

#: The kernel as fast as which LAPACK does a whole operation.
_KERNEL: Final = {"cholesky": "potrf", "solve_triangular": "trsm", "inv": "trtri"}

_followed: tuple[str, BlockedPlan] | None = None

#: Host memory that cuSOLVER and its kernels take once they are loaded by an estimate on the high side.
_LIBRARIES: Final = 384 << 20


@dataclass(slots=True)
class BlockedOperation:
    """One operation on its way to a device.

    Attributes
    ----------
    name : str
        For errors, progress bars and journals: ``"cholesky"``.
    driver : CholeskyDriver or another of its face
    flops : float
        Real floating-point operations.
    memory, gpu_memory : int, str or None
        The operation's limits.
    result_bytes : int
        Bytes of a result in RAM, which has its ticket already and counts under ``memory``.
    progress : bool, callable or None
    in_core : callable, optional
        Does the whole operation by library calls on arrays in RAM.
    in_core_seconds : float
        What that takes.
    repeatable : bool
        Whether it can start over after a failure half-way: nothing is overwritten that it reads.
    """

    name: str
    driver: Any
    flops: float
    memory: Any = None
    gpu_memory: Any = None
    result_bytes: int = 0
    progress: Any = None
    in_core: Callable[[], None] | None = None
    in_core_seconds: float = 0.0
    repeatable: bool = True

    @property
    def dtype(self) -> np.dtype[Any]:
        """What kernels compute in."""
        dtype: np.dtype[Any] = self.driver.dtype
        return dtype


def in_core_seconds(operation: str, flops: float, dtype: np.dtype[Any], order: int) -> float:
    """What LAPACK is predicted to take for an operation on arrays in RAM; ``order`` is the smallest side of its operands."""
    fraction, _ = FRACTIONS["cpu"][_KERNEL[operation]]
    return flops / (fraction * load_profile().gemm_rate("cpu", dtype.name, float(order)))


def routes(operation: BlockedOperation) -> tuple[tuple[Route, ...], Limits]:
    """Every route with its predicted seconds, the fastest first, and the limits they keep."""
    backend = config.get("backend")
    profile = load_profile()
    cold = gpu_is_cold()
    fastest = operation.flops / profile.gemm_rate("cpu", operation.dtype.name, 1000.0)
    gpu: Device | None = None
    # Nothing starts CUDA for work that the CPU finishes sooner than CUDA starts.
    if backend != "cpu" and profile.gpu is not None and (backend == "gpu" or not cold or fastest > profile.gpu.start_seconds):
        gpu = devices.pretended_gpu(profile, operation.dtype) or devices.gpu()
    limits = operation_limits(operation.memory, operation.gpu_memory, result=operation.result_bytes)
    found: list[Route] = []
    if operation.in_core is not None and backend != "gpu":
        found.append(Route("LAPACK in core", "cpu", False, operation.in_core_seconds))
    best = min((route.seconds for route in found), default=float("inf"))
    if backend != "gpu" and operation.in_core is None:
        found.append(
            _streamed(
                "streamed LAPACK", devices.cpu(), operation.driver, profile, operation.dtype, limits, operation.flops, 0.0, best
            )
        )
    if gpu is not None and profile.gpu is not None:
        start = profile.gpu.start_seconds if cold else 0.0
        best = min((route.seconds for route in found), default=float("inf")) if backend == "auto" else float("inf")
        # A limit on host memory covers the libraries, too, that the first task loads.
        libraries = min(_LIBRARIES, limits.host // 4) if limits.memory is not None and operation.driver.workspaces else 0
        left = replace(limits, host=limits.host - libraries)
        found.append(
            _streamed("streamed cuSOLVER", gpu, operation.driver, profile, operation.dtype, left, operation.flops, start, best)
        )
    elif backend == "gpu":
        found.append(_refuse("CuPy", "gpu", "there is no usable GPU; call pycauset.cuda.info() for the reason"))
    return tuple(sorted(found, key=lambda route: route.seconds)), limits


def choose(operation: BlockedOperation) -> tuple[Route, tuple[Route, ...], Limits]:
    """The route to take, all routes, and the limits.

    Raises
    ------
    MemoryLimitError, BackendError
        If no route can be taken; the message gives each one's reason.
    """
    found, limits = routes(operation)
    best = found[0]
    if best.refused:
        reasons = "; ".join(f"{route.name}: {route.refused}" for route in found)
        kind = MemoryLimitError if any("memory" in route.refused for route in found) else BackendError
        enough = _enough(operation) if kind is MemoryLimitError else ""
        raise kind(f"{operation.name} has no way through: {reasons}{enough}")
    return best, found, limits


def _enough(operation: BlockedOperation) -> str:
    """A ``memory=`` that has a way through, in words; empty if it is another limit that is too small."""
    memory = named_limit(operation.memory, "memory")
    if memory is None:
        return ""
    largest = max(store.nbytes for store in operation.driver.stores)

    def works(limit: int) -> bool:
        # With more memory a result may lie in RAM, and count; on disk it has larger chunks: a few take a quarter at most.
        results = {operation.result_bytes, largest if 2 * largest <= limit else 0}
        room = limit - limit // 4
        return not any(routes(replace(operation, memory=room, result_bytes=size))[0][0].refused for size in results)

    least = least_memory(memory, works)
    return f"; memory={least!r} is enough for {operation.name}" if least else ""


def run(operation: BlockedOperation, journal: Any = None) -> BlockedPlan | None:
    """Do it. Returns the plan that was followed, None for an in-core call.

    Parameters
    ----------
    operation : BlockedOperation
    journal : Journal, optional
        Its plan is followed, if it has one; else it is told which plan and device were chosen.
    """
    with clean_stop():
        if journal is not None and journal.plan is not None:
            where, plan = _on_record(operation, journal)
            limits = operation_limits(operation.memory, operation.gpu_memory, result=operation.result_bytes)
            try:
                _refuse_less(operation, plan, limits)
                _stream(operation, where, plan, limits)
            except MemoryLimitError as error:
                raise MemoryLimitError(f"{error}, or else {journal.remedy}") from error
            return plan
        best, found, limits = choose(operation)
        if not best.streamed:
            assert operation.in_core is not None
            with limits.scope(operation.name):
                operation.in_core()
            record_statistics(None)
            return None
        if limits_now() != (None, None):
            try:
                _refuse_less(operation, best.plan, limits)  # type: ignore[arg-type]
            except MemoryLimitError as error:
                raise MemoryLimitError(f"{error}, or else {RESTART}") from None
        if journal is not None:
            machine = gpu_arithmetic() if best.device == "gpu" else {}
            journal.begin({"device": best.device, "plan": best.plan.to_json()}, machine=machine)  # type: ignore[union-attr]
        try:
            _stream(operation, _device(best.device), best.plan, limits)
        except DeviceError as error:
            spare = [route for route in found if route.device == "cpu" and not route.refused]
            if best.device != "gpu" or not spare or not operation.repeatable or journal is not None:
                raise
            warnings.warn(
                f"the GPU failed ({error}); {operation.name} is computed again on the CPU", PycausetWarning, stacklevel=4
            )
            if not spare[0].streamed:
                assert operation.in_core is not None
                operation.in_core()
            else:
                _stream(operation, devices.cpu(), spare[0].plan, limits)
        return best.plan  # type: ignore[return-value]


def _on_record(operation: BlockedOperation, journal: Any) -> tuple[Device, BlockedPlan]:
    """Device and plan of the interrupted run.

    Raises
    ------
    JournalError
        If they cannot be followed.
    DeviceError
        If the device is gone.
    """
    kind = journal.plan.get("device")
    try:
        plan: BlockedPlan = operation.driver.plan_type.from_json(journal.plan.get("plan"))
    except ValueError as error:
        raise journal.unusable(f"plan.plan.{error}") from None
    if kind not in ("cpu", "gpu") or (kind == "cpu") is not plan.unified:
        raise journal.unusable(f"plan.device is {kind!r}")
    machine = gpu_arithmetic() if kind == "gpu" else {}
    changed = differences(journal.header.get("machine"), machine, "machine") if machine.get("gpu") else []
    if changed:
        raise journal.unusable(f"it was computing on a GPU, and {'; '.join(changed)}")
    where = devices.cpu() if kind == "cpu" else devices.gpu()
    if where is None:
        raise DeviceError(
            f"{operation.name} was begun on a GPU, and there is none now; bring the GPU back, or else {journal.remedy}"
        )
    try:
        operation.driver.check(plan, where, journal.generations())
    except ValueError as error:
        raise journal.unusable(f"plan.plan.{error}") from None
    return where, plan


def _refuse_less(operation: BlockedOperation, plan: BlockedPlan, limits: Limits) -> None:
    """Refuse limits that a plan for other ones does not keep: another plan would end in other bits.

    Raises
    ------
    MemoryLimitError
        With what the plan needs.
    """
    from pycauset.devices.cupy import WORKSPACE_BYTES

    now, gpu_now = limits_now()
    memory = limits.memory if now is None else now - operation.result_bytes
    gpu_memory = limits.gpu_memory if gpu_now is None else gpu_now
    host, device = (plan.device_bytes, 0) if plan.unified else (plan.host_bytes, plan.device_bytes)
    for name, limit, tiles, kept in (
        ("memory", memory, host, 0 if memory is None else host_reserve(memory)),
        ("gpu_memory", gpu_memory, device, WORKSPACE_BYTES),
    ):
        if limit is None or tiles <= limit - kept:
            continue
        enough = tiles + (host_reserve(2 * tiles) + operation.result_bytes if name == "memory" else kept)
        given = limit + (operation.result_bytes if name == "memory" else 0)
        raise MemoryLimitError(
            f"{operation.name} goes on by the plan on record, whose tiles need {format_bytes(tiles)} ({tiles} bytes): "
            f"{name}={given} is too little; give {name}={enough} or more"
        )


def _device(kind: str) -> Device:
    found = devices.cpu() if kind == "cpu" else devices.gpu()
    if found is None:
        raise DeviceError("the GPU is gone; call again, and the work goes to the CPU")
    return found


def last_plan() -> tuple[str, BlockedPlan] | None:
    """Device ("cpu", "gpu") and plan of this process's last streamed run, None if there was none: for benchmarks."""
    return _followed


def _stream(operation: BlockedOperation, where: Device, plan: Any, limits: Limits) -> None:
    global _followed
    _followed = where.kind, plan
    driver = operation.driver
    with limits.scope(operation.name) as scope:
        for kernel in driver.workspaces:
            where.prepare(kernel, min(plan.tile[0], max(driver.stores[0].shape)), driver.dtype)
        run_streamed(
            where,
            driver,
            plan,
            scope,
            operation.name,
            operation.flops,
            operation.progress,
            readers=driver.readers(where),
            writers=driver.writers(where),
        )
