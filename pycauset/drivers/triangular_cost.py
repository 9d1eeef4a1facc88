"""What a plan of a triangular algorithm costs: bytes over each link, tasks and seconds, in closed form.

The counts follow the cache planner exactly (tests compare them), without walking through the tasks. *Loads* are tiles that
come to the device, counted in elements.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedPlan, predict_seconds
from pycauset.drivers.matmul_cost import STRIDED_COPY
from pycauset.tiling import ceil_div

if TYPE_CHECKING:
    from pycauset.drivers.triangular_plan import TriangularProblem

__all__ = ["predict"]

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Sides of the tiles along n by position, with sums over the first so many of them and of their squares."""

    side: Integers
    start: Integers
    squares: Integers

    @property
    def columns(self) -> Integers:
        """Elements of each column of tiles of the triangle, from its diagonal tile on."""
        below: Integers = self.start[-1] - self.start[:-1]
        return self.side * below


@functools.lru_cache(maxsize=16)
def _tiles(n: int, b: int, forward: bool) -> _Tiles:
    side = np.full(ceil_div(n, b), b, np.int64)
    side[-1 if forward else 0] = n - b * (len(side) - 1)
    zero = np.zeros(1, np.int64)
    return _Tiles(side, np.concatenate((zero, np.cumsum(side))), np.concatenate((zero, np.cumsum(side * side))))


@dataclass(slots=True)
class _Loads:
    """Elements that come to the device, and that leave it."""

    factor: int = 0
    factor_from_disk: int = 0
    first: int = 0
    streamed: int = 0
    other: int = 0
    written: int = 0


def _kept(t: _Tiles, uses: Integers, keep: int, diagonal_first: bool) -> int:
    """Loads that the first ``keep`` tiles of T save by staying: they are numbered by columns from the last one on."""
    rows = len(t.side)
    full = int((np.sqrt(8.0 * keep + 1) - 1) / 2)
    while full * (full + 1) // 2 > keep:  # the root may be off by one for huge numbers
        full -= 1
    again = uses - 1
    saved = int((again * t.columns)[rows - full :].sum())
    saved += int(t.squares[rows] - t.squares[rows - full]) if diagonal_first else 0
    rest = keep - full * (full + 1) // 2
    if rest:
        k = rows - 1 - full
        saved += int(again[k] * t.side[k] * (t.start[k + rest] - t.start[k]))
        saved += int(t.side[k] ** 2) if diagonal_first else 0
    return saved


def _loads(p: TriangularProblem, plan: BlockedPlan) -> _Loads:
    t = _tiles(p.n, plan.tile[0], p.forward)
    rows = len(t.side)
    h, w = plan.block
    n, m = p.n, p.m
    if p.kind == "gram":
        return _gram_loads(t, h)
    loads = _Loads()
    position = np.arange(rows, dtype=np.int64)
    passes = ceil_div(ceil_div(m, plan.tile[1]), w)
    uses = position // w + 1 if p.kind == "inverse" else np.full(rows, passes, np.int64)
    first = p.checks == "first"
    total = int((uses * t.columns).sum()) + (int(t.squares[-1]) if first else 0)
    loads.factor = total - _kept(t, uses, plan.keep, first)
    loads.factor_from_disk = total - _kept(t, uses, max(plan.keep, plan.host_keep), first)
    starts = np.arange(h, rows, h)
    if p.kind == "solve":
        loads.first, loads.written = n * m, n * m
        loads.streamed = m * int(t.start[starts].sum())
    elif p.kind == "product":
        loads.other, loads.written = m * (int(t.start[starts].sum()) + n), n * m
    else:
        loads.written = int(n * n + t.squares[-1]) // 2
        loads.streamed = _inverse_streamed(n, plan.tile[0], p.forward, h, w)
    return loads


@functools.lru_cache(maxsize=1024)
def _inverse_streamed(n: int, b: int, forward: bool, h: int, w: int) -> int:
    """Elements of the inverse that come back for blocks below them."""
    t = _tiles(n, b, forward)
    rows, total = len(t.side), 0
    for left in range(0, rows, w):
        right = min(left + w, rows)
        below = np.arange(left + h, rows, h)  # first rows of the blocks past the first
        corner = np.minimum(below, right)
        square = (t.start[below] - t.start[corner]) * (t.start[right] - t.start[left])
        triangle = ((t.start[corner] - t.start[left]) ** 2 + t.squares[corner] - t.squares[left]) // 2
        total += int((square + triangle).sum())
    return total


def _gram_loads(t: _Tiles, h: int) -> _Loads:
    """A block meets its own panel of T, and another one unless it lies on the diagonal."""
    rows, n = len(t.side), int(t.start[-1])
    loads = _Loads(written=int(n * n + t.squares[-1]) // 2)
    blocks = ceil_div(rows, h)
    for number, low in enumerate(range(0, rows, h)):
        high = min(low + h, rows)
        end = int(t.start[high])
        # Rows low:high of T, each up to its diagonal.
        own = (end**2 - int(t.start[low]) ** 2 + int(t.squares[high] - t.squares[low])) // 2
        loads.factor += own * (blocks - number) + (n - end) * end
    loads.factor_from_disk = loads.factor
    return loads


def _kernels(p: TriangularProblem, plan: BlockedPlan) -> tuple[tuple[str, int, float], ...]:
    """Kernels in groups: their name, how many, and their flops all together."""
    t = _tiles(p.n, plan.tile[0], p.forward)
    rows, cols = len(t.side), ceil_div(p.m, plan.tile[1])
    pairs, triples = rows * (rows - 1) // 2, rows * (rows - 1) * (rows - 2) // 6
    unit = 4.0 if p.dtype.kind == "c" else 1.0
    side = t.side.astype(float)
    n, squares, cubes = float(p.n), float((side**2).sum()), float((side**3).sum())
    light = (rows if p.checks else 0) + (rows * cols if p.copies else 0)
    if p.kind in ("solve", "product"):
        return (
            ("copy", light, 0.0),
            ("trsm" if p.kind == "solve" else "trmm", rows * cols, unit * squares * p.m),
            ("gemm", pairs * cols, unit * (n * n - squares) * p.m),
        )
    crossing = unit * (n * squares - cubes) / 2  # flops of the tiles that meet one triangular tile, from either side
    updates = ("gemm", triples, unit * (n**3 - cubes) / 3 - 2 * crossing)
    if p.kind == "inverse":
        return (
            ("copy", light + rows, 0.0),
            ("trtri", rows, unit * cubes / 3),
            ("trsm", pairs, crossing),
            ("trmm", pairs, crossing),
            updates,
        )
    return (
        ("copy", light + rows + 1 + (pairs if p.adjoint_first else 0), 0.0),
        ("trmm", rows + pairs, unit * cubes / 3 + crossing),
        ("rank_k", pairs, crossing),
        updates,
    )


def predict(p: TriangularProblem, plan: BlockedPlan, rates: Rates) -> BlockedPlan:
    """The plan with its bytes, its tasks and flops, and its seconds on a machine of these rates filled in."""
    es = p.dtype.itemsize
    loads = _loads(p, plan)
    disk = p.disk_itemsize
    in_memory = p.slotless if plan.unified else p.hostless
    other = p.n * p.m if p.copies else loads.other  # B, where it is an operand of its own
    disk_read = 0.0 if in_memory[0] else loads.factor_from_disk * disk[0]
    disk_write = 0.0
    if not in_memory[1]:
        disk_read += loads.first * p.origin_itemsize + loads.streamed * disk[1]
        disk_write = loads.written * disk[1]
    if other and not in_memory[2]:
        disk_read += other * disk[2]
    upload = download = 0
    if not plan.unified:
        upload = (loads.factor + loads.first + loads.streamed + other) * es
        download = loads.written * es
    kernels = _kernels(p, plan)
    tasks = sum(number for _, number, _ in kernels)
    compute = sum(number * rates.compute(flops / number, kernel) for kernel, number, flops in kernels if number)
    # Tiles of arrays in pinned memory are strided there; such copies run slower than those of whole host slots.
    slower = [1 / STRIDED_COPY if here else 1.0 for here in (*p.hostless, False)]
    up = loads.factor * slower[0] + (loads.first + loads.streamed) * slower[1] + other * slower[2]
    seconds, stages = predict_seconds(
        rates,
        unified=plan.unified,
        compute=compute if plan.unified else max(compute, tasks * rates.submit),
        upload=up * es,
        download=loads.written * slower[1] * es,
        disk_read=disk_read,
        disk_write=disk_write,
        first=sum(map(_size, (p.tile_shape(0, plan.tile), p.tile_shape(1, plan.tile)))) * es,
        last=_size(p.tile_shape(1, plan.tile)) * plan.block[1] * es,
        stalls=0.0 if plan.unified else _stalls(p, plan, rates, loads),
        host_bytes=plan.host_bytes,
    )
    return replace(
        plan,
        upload=upload,
        download=download,
        disk_read=round(disk_read),
        disk_write=round(disk_write),
        seconds=seconds,
        stages=stages,
        tasks=tasks,
        flops=p.flops,
    )


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _stalls(p: TriangularProblem, plan: BlockedPlan, rates: Rates, loads: _Loads) -> float:
    """Seconds that steps wait for the panel they hold, as far as it is not prefetched while the last step computes."""
    b, c = plan.tile
    h, w = plan.block
    held_t = plan.variant == "panel of T"
    held = h if held_t else w
    tile = _size(p.tile_shape(0 if held_t else 1, plan.tile))
    panel = plan.slots[0] - plan.keep if held_t else plan.slots[2] if p.kind == "product" else plan.slots[1] - h * w
    behind = max(0, held - max(0, panel - held))
    flops = (8.0 if p.dtype.kind == "c" else 2.0) * b * b * c
    wait = max(0.0, tile * p.dtype.itemsize / rates.upload - rates.compute(flops))
    streamed = loads.other if p.kind == "product" else loads.factor / h if p.kind == "gram" else loads.streamed
    return behind * wait * streamed / max(1, b * c * w)
