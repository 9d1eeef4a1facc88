"""The AutoSolver at work: lay out the result, choose the route, run it, commit or discard."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycauset import config, devices
from pycauset.devices.audit import load_profile
from pycauset.devices.base import Device
from pycauset.devices.numpy import mirror_lower
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.triangular_product import TriangularProductDriver
from pycauset.errors import ConfigError, DeviceError, DtypeError, OverlapError, PycausetWarning, ShapeError
from pycauset.governor import governor
from pycauset.solver.factor import Factor, Layout, in_memory, layout_of, triangular
from pycauset.solver.routes import ProductDriver, Route, SolverPlan, matmul_routes
from pycauset.solver.run import Limits, clean_stop, least_memory, named_limit, operation_limits, record_statistics, run_streamed
from pycauset.storage import ArrayStore, TileStore, aligned_empty, scratch_store
from pycauset.tiling import Rect

__all__ = ["multiply", "plan"]

_SMALL_RESULT = 64 << 20


@dataclass(frozen=True, slots=True)
class _Product:
    """``out = alpha a b + beta out``, and under which limits.

    ``fresh`` says that nobody has touched ``out`` yet, ``on_disk`` that a new result is to lie there whatever its size.
    """

    a: Factor
    b: Factor
    layout: Layout
    out: TileStore
    fresh: bool
    alpha: complex = 1.0
    beta: complex = 0.0
    memory: int | None = None
    gpu_memory: int | None = None
    route: str | None = None
    on_disk: bool = False

    @property
    def flops(self) -> float:
        (m, n), k = self.layout.shape, self.a.shape[1]
        return (8.0 if self.layout.compute.kind == "c" else 2.0) * m * n * k

    @property
    def owner(self) -> str:
        return f"matmul {self.a.shape} @ {self.b.shape}"

    def driver(self) -> ProductDriver:
        a, b, layout = self.a, self.b, self.layout
        if layout.kernel == "trmm":
            triangle = triangular(a, b)
            assert triangle is not None
            side, uplo = triangle
            t, other = (a, b) if side == "L" else (b, a)
            array = in_memory(other.store) if other.op == "T" else None
            store = other.store if array is None else ArrayStore(array.T)
            return TriangularProductDriver(
                t.store, store, self.out, layout.compute, side=side, uplo=uplo, op=t.op, alpha=self.alpha
            )
        rank_k = layout.kernel == "rank_k"
        return MatmulDriver(
            a.store, b.store, self.out, layout.compute, alpha=self.alpha, beta=self.beta, op_a=a.op, op_b=b.op, rank_k=rank_k
        )

    def limits(self) -> Limits:
        """What the operation may take; a new result in RAM counts under ``memory``."""
        return operation_limits(self.memory, self.gpu_memory, result=self.result_bytes())

    def result_bytes(self) -> int:
        """Bytes of a new result in RAM."""
        return _nbytes(self.layout) if self.fresh and in_memory(self.out) is not None else 0


def _nbytes(layout: Layout) -> int:
    return layout.shape[0] * layout.shape[1] * layout.dtype.itemsize


def plan(
    operation: str,
    a: Factor,
    b: Factor,
    *,
    out: TileStore | None = None,
    out_on_disk: bool = False,
    memory: Any = None,
    gpu_memory: Any = None,
    thorough: bool = False,
) -> SolverPlan:
    """Predict an operation without running it; only ``"matmul"`` so far.

    With ``thorough`` routes that cannot be the fastest are planned too: benchmarks compare them all.

    Raises
    ------
    ConfigError, ShapeError, DtypeError
        For an unknown operation or operands that do not fit.
    """
    if operation != "matmul":
        raise ConfigError(f"no plan is known for {operation!r}; there is 'matmul'")
    a, b = _row_major(a), _row_major(b)
    layout = layout_of(a, b)
    host, device = named_limit(memory, "memory"), named_limit(gpu_memory, "gpu_memory")
    fresh = out is None
    if out is None:
        out = _Phantom(layout, not out_on_disk and _result_in_ram(layout, host))
    else:
        layout = _check_out(a, b, out, layout)
    product = _Product(a, b, layout, out, fresh, memory=host, gpu_memory=device, on_disk=out_on_disk)
    return _plan(product, thorough=thorough)[0]


class _Phantom(ArrayStore):
    """Stands for a result that does not exist yet."""

    def __init__(self, layout: Layout, in_ram: bool) -> None:
        super().__init__(np.empty((0, 0), layout.dtype))
        self.shape, self.dtype, self.chunks = layout.shape, layout.dtype, layout.chunks
        self._in_ram = in_ram

    @property
    def generation(self) -> int | None:
        """Says, as in stores on disk, that elements come from there."""
        return None if self._in_ram else 0

    def view(self, rect: Rect) -> np.ndarray[Any, Any] | None:
        return np.broadcast_to(np.empty((), self.dtype), self.shape) if self._in_ram else None


def _result_in_ram(layout: Layout, host: int | None) -> bool:
    if host is not None:
        # Under a limit the result may take half of it; slots need the rest.
        return _nbytes(layout) <= host // 2
    return _nbytes(layout) <= max(_SMALL_RESULT, governor().available("host") // 2)


def _plan(product: _Product, *, thorough: bool = False, remedy: bool = True) -> tuple[SolverPlan, ProductDriver]:
    """The routes; where all are refused and ``remedy`` says so, with the limit that would do."""
    laid_out = product
    if product.layout.kernel == "trmm":
        if product.beta == 0:
            found = _plan_as_laid_out(product, thorough=thorough)
            if not found[0].routes[0].refused:
                return found
        # TRMM adds to nothing, and a full product may fit where it does not.
        laid_out = replace(product, layout=product.layout._replace(kernel="gemm"))
    solution, driver = _plan_as_laid_out(laid_out, thorough=thorough)
    if remedy and solution.routes[0].refused:
        solution = replace(solution, enough=_enough(product))
    return solution, driver


def _plan_as_laid_out(product: _Product, *, thorough: bool) -> tuple[SolverPlan, ProductDriver]:
    backend = config.get("backend")
    profile = load_profile()
    layout = product.layout
    gpu_cold = devices.gpu_is_cold()
    gpu: Device | None = None
    if backend != "cpu" and profile.gpu is not None:
        # Nothing starts CUDA for a product that the CPU finishes sooner than CUDA starts.
        on_cpu = product.flops / profile.gemm_rate("cpu", layout.compute, 1000.0)
        if backend != "auto" or not gpu_cold or on_cpu >= profile.gpu.start_seconds:
            gpu = devices.pretended_gpu(profile, layout.compute) or devices.gpu()
    driver, limits = product.driver(), product.limits()
    routes = matmul_routes(
        product.a,
        product.b,
        layout,
        driver,
        out_in_ram=in_memory(product.out) is not None,
        new_output=product.fresh,
        profile=profile,
        cpu=devices.cpu(),
        gpu=gpu,
        gpu_cold=gpu_cold,
        limits=limits,
        backend=backend,
        thorough=thorough,
        only=product.route,
    )
    flops = driver.problem(devices.cpu()).flops
    depth, in_ram = product.a.shape[1], product.result_bytes()
    return SolverPlan("matmul", layout, depth, routes, flops, backend, limits, in_ram), driver


def _enough(product: _Product) -> str:
    """The least ``memory=`` that has a way through, found by planning with it; empty if more memory does not help."""
    if product.memory is None:
        return ""

    def works(memory: int) -> bool:
        out = product.out
        if product.fresh:  # where the result lies depends on the limit
            out = _Phantom(product.layout, not product.on_disk and _result_in_ram(product.layout, memory))
        found, _ = _plan(replace(product, memory=memory, out=out), remedy=False)
        return not found.routes[0].refused

    return least_memory(product.memory, works)


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
    route: str | None = None,
) -> TileStore:
    """``out = alpha a b + beta out``; without ``out`` a new store in RAM if the governor grants it, else in scratch.

    ``route`` names one of ``plan(...).routes`` to take instead of the fastest, for comparisons.

    The store comes back committed. When anything fails it is discarded: nothing that looks finished stays.

    Raises
    ------
    ShapeError, DtypeError, OverlapError, MemoryLimitError, StoreError, DeviceError
    """
    a, b = _row_major(a), _row_major(b)
    layout = layout_of(a, b)
    host, device = named_limit(memory, "memory"), named_limit(gpu_memory, "gpu_memory")
    if out is not None:
        layout = _check_out(a, b, out, layout)
    with clean_stop():
        target = out if out is not None else _new_result(layout, host)
        try:
            if out is not None:
                out.begin_write()
            _run(_Product(a, b, layout, target, out is None, alpha, beta, host, device, route), progress)
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
        nbytes = _nbytes(layout)
        ticket = governor().request("host", nbytes, owner=f"a result of shape {layout.shape}")
        if ticket is not None:
            array = aligned_empty(layout.shape, layout.dtype) if nbytes else np.empty(layout.shape, layout.dtype)
            # Views keep the array's base alive, not the array.
            weakref.finalize(array.base if isinstance(array.base, np.ndarray) else array, ticket.release)
            return ArrayStore(array)
    return scratch_store(layout.shape, layout.dtype, chunks=layout.chunks, structure=layout.structure)


def _run(product: _Product, progress: Any) -> None:
    if 0 in product.layout.shape:
        return
    solution, driver = _plan(product)
    product, route = replace(product, layout=solution.layout), solution.route
    try:
        _take(route, product, driver, progress)
    except DeviceError as error:
        spare = [r for r in solution.routes if r.device == "cpu" and not r.refused]
        if route.device != "gpu" or not spare or product.beta != 0:
            raise
        import warnings

        warnings.warn(f"the GPU failed ({error}); the product is computed again on the CPU", PycausetWarning, stacklevel=4)
        _take(spare[0], product, driver, progress)
    array = in_memory(product.out)
    if product.layout.kernel == "rank_k" and route.streamed and array is not None:
        mirror_lower(array, product.layout.structure == "hermitian")


def _take(route: Route, product: _Product, driver: ProductDriver, progress: Any) -> None:
    with product.limits().scope(product.owner) as scope:
        if not route.streamed:
            from pycauset.solver.incore import matmul_in_core

            record_statistics(None)
            matmul_in_core(route, product.a, product.b, product.layout, product.out, product.alpha, product.beta, scope)
            return
        assert route.plan is not None
        where: Device | None = devices.cpu() if route.device == "cpu" else devices.gpu()
        if where is None:
            raise DeviceError("the GPU is gone; the work goes to the CPU")
        threads = {"readers": driver.readers(where), "writers": driver.writers(where)}
        streamed: Any = driver
        run_streamed(where, streamed, route.plan, scope, "matmul", driver.problem(where).flops, progress, **threads)
