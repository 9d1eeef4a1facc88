"""Planning a Cholesky factorisation: variant, tiles, resident blocks, slots, and the bytes and seconds that follow. Pure.

Three orders, all over square tiles of side b, T tile rows, with room for N tiles (S = N b² elements) on the device:

``"left"``
    Left-looking over square blocks. Columns are taken w tiles at a time; a block of h × w tiles is resident while the finished
    columns to its left stream past, then it is solved against its diagonal block. Reads and writes the triangle once and moves
    ``n³/(3√S)`` elements of finished columns.
``"right"``
    Right-looking. A panel of p tile columns stays resident, and the rest of the matrix streams past it, read and written once for
    each panel. With everything resident it moves the least there is; else ``n³/(3 p b)`` elements twice over.
``"triangle"``
    Wide panels, each factored as above, then one symmetric update of all that is left, in triangle blocks
    (:mod:`pycauset.drivers.triangle_blocks`): ``n³/(3√2·√S)``, but the rest of the matrix moves once more for each panel, so
    that it wins only where n is large against √S.

References
----------
.. [1] O. Beaumont, L. Eyraud-Dubois, M. Vérité and J. Langou, "I/O-optimal algorithms for symmetric linear algebra
   kernels", SPAA 2022, arXiv:2202.10217 (algorithm LBC is the third order).
.. [2] G. Ballard, J. Demmel, O. Holtz and O. Schwartz, "Communication-optimal parallel and sequential Cholesky decomposition",
   SIAM J. Sci. Comput. 32 (2010).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedPlan, host_level, predict_seconds, slot_bytes, tile_pieces, tile_sides
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.triangle_blocks import layout, loads
from pycauset.errors import MemoryLimitError
from pycauset.tiling import ceil_div
from pycauset.units import format_bytes

__all__ = ["VARIANTS", "CholeskyPlan", "CholeskyProblem", "lower_bound", "plan_cholesky"]

VARIANTS = ("left", "right", "triangle")
#: Slots beside the block and the panel in use: tiles on their way in and out. The device waits without them.
_IN_FLIGHT = 3
#: The same where bytes matter more.
_TIGHT = 2
#: A plan may move this much more than the bound, if it can choose.
_SLACK = 1.10
#: Seconds that differ by less are equal.
_EQUAL = 1.04
#: Seconds that the submitting thread is taken to need for a task on a GPU. An estimate on the low side: gpu_matmul_pinned.py
#: counts that thread's CPU time, 97 and 140 µs a task in the two runs that README.md lists.
_HOST_SECONDS = 75e-6


@dataclass(frozen=True, slots=True)
class CholeskyProblem:
    """The matrix to be factored, as the planner sees it.

    ``unit`` is the multiple for tile sides that makes tiles whole chunks. ``slotless`` and ``hostless`` say whether tiles need no
    device slots, or no host slots (both False: on disk); ``in_itemsize`` and ``out_itemsize`` are bytes of an element where the
    matrix comes from and where the factor goes.
    """

    n: int
    dtype: np.dtype[Any]
    unit: int = 1
    slotless: bool = False
    hostless: bool = False
    in_itemsize: float = 8.0
    out_itemsize: float = 8.0
    grain: tuple[int, int] | None = None

    @property
    def flops(self) -> float:
        """Real floating-point operations: n³/3, four times as many for complex numbers."""
        return (4.0 if self.dtype.kind == "c" else 1.0) * self.n**3 / 3


@dataclass(frozen=True, slots=True)
class CholeskyPlan(BlockedPlan):
    """The plan of a Cholesky factorisation.

    Attributes
    ----------
    panel : int
        Tile columns that are factored together before the rest is updated; all of them with ``variant="left"``.
    capacity : int
        Tiles that a resident block and its panel may take together in the updates of ``variant="triangle"``.
    """

    panel: int = 1
    capacity: int = 1

    @property
    def keeps_corner(self) -> bool:
        """Whether a panel's first diagonal block stays for the block below it, whose columns arrive as its rows leave."""
        height, width = self.block
        corner = width * (width + 1) // 2
        most = max(height * (col + 1) + corner - col * (col + 1) // 2 for col in range(width))
        return most + _IN_FLIGHT <= self.slots[0]


def lower_bound(n: float, fast: float) -> float:
    """Fewest elements moved, left-looking over square blocks: ``n³/(3√S)`` plus reading and writing the triangle once.

    Examples
    --------
    >>> round(lower_bound(1000, 10_000))
    4334333
    """
    return n**3 / (3 * math.sqrt(fast)) + n * (n + 1)


def task_counts(tiles: int) -> dict[str, int]:
    """Kernels of each kind in a factorisation of ``tiles`` × ``tiles`` tiles, whatever the order.

    Examples
    --------
    >>> task_counts(3)
    {'potrf': 3, 'trsm': 3, 'rank_k': 3, 'gemm': 1}
    """
    pairs = tiles * (tiles - 1) // 2
    return {"potrf": tiles, "trsm": pairs, "rank_k": pairs, "gemm": pairs * (tiles - 2) // 3}


# -- bytes in closed form ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Moved:
    """Elements loaded to the device and saved from it, and those of them that the host level spares the disk."""

    loaded: int = 0
    saved: int = 0
    spared: int = 0

    def __add__(self, other: _Moved) -> _Moved:
        return _Moved(self.loaded + other.loaded, self.saved + other.saved, self.spared + other.spared)


@dataclass(frozen=True, slots=True)
class _Rows:
    """n rows cut into tiles of one side, of which the last may be shorter."""

    n: int
    tile: int

    @property
    def count(self) -> int:
        return ceil_div(self.n, self.tile)

    def extent(self, first: int, last: int) -> int:
        """Rows of tiles ``first:last``."""
        return min(last * self.tile, self.n) - min(first * self.tile, self.n)

    def triangle(self, first: int, last: int) -> int:
        """Elements of the tiles (i, j) with first ≤ j ≤ i < last."""
        rows = self.extent(first, last)
        whole, ragged = divmod(rows, self.tile)
        return self.tile**2 * whole * (whole + 1) // 2 + rows * ragged


def moved(plan: CholeskyPlan) -> _Moved:
    """What a plan loads and saves."""
    rows = _Rows(plan.sizes[0], plan.tile[0])
    count = rows.count
    if plan.variant == "right":
        return _moved_right(rows, plan.panel)
    total = _Moved()
    for first in range(0, count, plan.panel):
        last = min(first + plan.panel, count)
        total += _moved_panel(plan, rows, first, last)
        if last < count:
            rest = rows.triangle(last, count)
            each = loads(layout(count - last, plan.capacity, last), plan.capacity, rows.tile, rows.extent(count - 1, count))
            total += _Moved(rest + each * rows.extent(first, last), rest)
    return total


def _moved_panel(plan: CholeskyPlan, rows: _Rows, first: int, last: int) -> _Moved:
    """Left-looking within tile columns ``first:last``."""
    height, width = plan.block
    loaded = saved = spared = 0
    for j0 in range(first, last, width):
        j1 = min(j0 + width, last)
        cols, depth, below = rows.extent(j0, j1), rows.extent(first, j0), rows.extent(j1, rows.count)
        passes = ceil_div(rows.count - j1, height)
        corner = rows.triangle(j0, j1)
        block = corner + below * cols
        # The diagonal block needs its rows once, each block below its own, and the diagonal block's again.
        again = passes - (plan.keeps_corner and j0 == first and passes > 0)
        loaded += block + cols * depth + below * depth + passes * cols * depth + again * corner
        saved += block
        spared += passes * cols * min(depth, plan.host_keep * plan.tile[0])
    return _Moved(loaded, saved, spared)


def _moved_right(rows: _Rows, panel: int) -> _Moved:
    # Tiles beyond the next panel wait in the store from one panel to the next.
    again = sum(rows.triangle(beyond, rows.count) for beyond in range(2 * panel, rows.count, panel))
    whole = rows.triangle(0, rows.count)
    return _Moved(whole + again, whole + again)


# -- choosing ----------------------------------------------------------------------------------------------------------


def predict(plan: CholeskyPlan, problem: CholeskyProblem, rates: Rates) -> CholeskyPlan:
    """The plan with its bytes, seconds and memory filled in."""
    p, es = problem, problem.dtype.itemsize
    volume = moved(plan)
    tile = max(1, min(plan.tile[0], p.n))
    rows = _Rows(p.n, plan.tile[0])
    count = rows.count
    whole = rows.triangle(0, count)
    kernels = task_counts(count)
    unit = (4.0 if p.dtype.kind == "c" else 1.0) * tile**3
    work = {"potrf": unit / 3, "trsm": unit, "rank_k": unit, "gemm": 2 * unit}
    each = {name: rates.compute(flops, name) for name, flops in work.items()}
    scale = p.flops / max(sum(kernels[name] * work[name] for name in kernels), 1.0)  # ragged tiles do less
    compute = scale * sum(kernels[name] * each[name] for name in kernels)
    # Every element comes from the origin once, the rest from where the factor goes.
    upload = download = 0.0
    read = 0.0 if p.slotless or p.hostless else whole * p.in_itemsize + (volume.loaded - whole - volume.spared) * p.out_itemsize
    write = 0.0 if p.slotless or p.hostless else volume.saved * p.out_itemsize
    if not plan.unified:
        upload, download = volume.loaded * es, volume.saved * es
    corner = 3 * (each["potrf"] + each["trsm"] + each["rank_k"])  # the last tiles have nobody to wait beside them
    tasks = sum(kernels.values())
    host = tasks * _HOST_SECONDS if not plan.unified else 0.0
    one = slot_bytes(tile, tile, es)
    host_bytes = plan.host_slots * plan.host_slot_bytes
    seconds, stages = predict_seconds(
        rates,
        unified=plan.unified,
        compute=max(compute, host),
        upload=upload,
        download=download,
        disk_read=read,
        disk_write=write,
        first=0.0 if p.slotless else tile * tile * es,
        last=0.0 if p.slotless else tile * tile * es,
        stalls=corner,
        host_bytes=host_bytes,
    )
    return replace(
        plan,
        upload=round(upload),
        download=round(download),
        disk_read=round(read),
        disk_write=round(write),
        seconds=seconds,
        stages=stages,
        device_bytes=0 if p.slotless else one * plan.slots[0],
        host_bytes=host_bytes,
        tasks=tasks,
        flops=p.flops,
    )


def _shapes(variant: str, count: int, slots: int, spare: int, ahead: bool) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Block, panel and capacity of every plan worth a look: ``count`` tile rows, ``slots`` tiles, ``spare`` of them in flight."""
    room = slots - spare
    if not count:
        yield (1, 1), 1, slots
        return
    resident = variant != "triangle" and count * (count + 1) // 2 <= slots
    if resident:
        yield (count, count), count, slots
    if variant == "right":
        panel = room // (2 * count)
        if panel > 0 and not resident:
            yield (count, panel), panel, slots
        return
    most = max(0, (math.isqrt(4 * room - 3) - 1) // 2) if room > 0 else 0  # w² + w + 1 tiles
    if not most:
        return
    # Rows need not match columns: where few slots make no square, a block that is wider than high may use them better.
    widths = {ceil_div(count, blocks) for blocks in range(2 if resident else 1, count + 1)}
    fitting = [width for width in widths if width * (width + 3) // 2 <= room and width + 2 <= room]
    for width in sorted(fitting, key=lambda width: abs(math.log(width / most)))[: 10 if variant == "left" else 4]:
        height = min(count, (room - 1) // (width + 1))
        if variant == "left":
            yield (height, width), count, slots
            if ahead and height > 1 and height + width > room - height * width:
                yield (height - 1, width), count, slots
        else:
            for panel in _panels(count, width):
                yield (height, min(width, panel)), panel, room


def _panels(count: int, width: int) -> list[int]:
    """Tile columns of a panel for the third order, near where its bytes are least.

    P panels move what is left of the matrix there and back P times, ``P n²/3`` elements, and ``n³/(2P√S)`` of finished columns
    within themselves: together least at ``P = √(3n/(2√S))``.
    """
    best = math.sqrt(1.5 * count / width)
    counts = {max(2, round(best * factor)) for factor in (0.4, 0.5, 0.63, 0.8, 0.9, 1.0, 1.1, 1.25, 1.6, 2.0)}
    return sorted({ceil_div(count, panels) for panels in counts if panels <= count}, reverse=True) or [count]


def candidates(
    p: CholeskyProblem, limits: MatmulLimits, rates: Rates, unified: bool, piece: int, variant: str, *, finer: bool = False
) -> Iterator[CholeskyPlan]:
    """Every plan of a variant that fits the limits; ``finer`` ones have smaller tiles, and fewer of them in flight."""
    es = p.dtype.itemsize
    fast = max(limits.device, 1) / es
    bound = lower_bound(p.n, fast) * es
    wanted = (1024, 512, 2048, 256) if unified else (2048, 4096, 1024, 3072, 512)
    eighth = round(math.sqrt(fast) / 8)
    sides = (*wanted, eighth if eighth < 256 else eighth // 256 * 256)
    if finer:
        sides = (*sides, eighth * 8 // 16, eighth * 8 // 24)
    for side in tile_sides(p.n, p.unit, sides):
        count = ceil_div(p.n, side)
        one = slot_bytes(max(1, min(side, p.n)), max(1, min(side, p.n)), es)
        slots = limits.device // one if not p.slotless else count * count + 8
        slots = min(slots, count * (count + 1) // 2 + count + 8)
        for block, panel, capacity in _shapes(variant, count, slots, _TIGHT if finer else _IN_FLIGHT, not unified):
            plan = CholeskyPlan(
                unified, (p.n,), p.dtype.name, (side, side), block, (slots,), variant, bound=bound, panel=panel, capacity=capacity
            )
            if not unified and not p.hostless:
                pieces = tile_pieces(min(side, p.n), min(side, p.n), p.grain, piece, es)
                level = host_level((pieces,), (2 * (block[0] + 2),), limits.host, piece)
                if level is None:
                    continue
                keep = _host_keep(plan, level.spare // pieces, rates)
                plan = replace(
                    plan, host_keep=keep, host_slots=level.slots + keep * block[1] * pieces, host_slot_bytes=level.slot_bytes
                )
            yield predict(plan, p, rates)


def _host_keep(plan: CholeskyPlan, spare: int, rates: Rates) -> int:
    """How many finished tile columns of a block's rows stay in host slots from one block below it to the next."""
    if plan.variant == "right" or (1 if rates.pin == math.inf else 2) * rates.pin < rates.read:
        return 0
    return max(0, min(spare // plan.block[1], plan.panel - plan.block[1]))


def plan_cholesky(
    problem: CholeskyProblem,
    limits: MatmulLimits,
    rates: Rates,
    *,
    unified: bool,
    piece: int = 8 << 20,
    variant: str | None = None,
) -> CholeskyPlan:
    """Choose variant, tiles and blocks.

    The variant is the one that has the plan with the fewest bytes, and of its plans only those count that move no more than any
    plan of another variant. Of these the fastest is taken that is near the fewest bytes and the bound.

    Parameters
    ----------
    problem : CholeskyProblem
    limits : MatmulLimits
        Bytes that slots may take.
    rates : Rates
        The machine.
    unified : bool
        Whether kernels work on host slots.
    piece : int
        Bytes of the largest piece that travels between store and host slot.
    variant : {"left", "right", "triangle"}, optional
        Take this one.

    Raises
    ------
    MemoryLimitError
        If no plan fits; the message says what the smallest one needs.
    """
    offers = {}
    for name in VARIANTS if variant is None else (variant,):
        plans = list(candidates(problem, limits, rates, unified, piece, name))
        if plans and all(plan.link_bytes > _SLACK * plan.bound for plan in plans):
            plans += candidates(problem, limits, rates, unified, piece, name, finer=True)
        if name != "left" and variant is None:  # one panel of all columns is left-looking by another name
            plans = [plan for plan in plans if plan.panel * plan.tile[0] < problem.n]
        if plans:
            offers[name] = plans
    if not offers:
        raise MemoryLimitError(_refusal(problem, limits, unified, piece, variant))
    fewest = {name: min(map(_volume, plans)) for name, plans in offers.items()}
    best = min(fewest, key=lambda name: fewest[name])
    rival = min((moved for name, moved in fewest.items() if name != best), default=math.inf)
    return _fastest([plan for plan in offers[best] if _volume(plan) <= rival])


def _fastest(plans: list[CholeskyPlan]) -> CholeskyPlan:
    """The fastest plan near the fewest bytes and the bound."""
    within = [plan for plan in plans if plan.link_bytes <= _SLACK * plan.bound] or [min(plans, key=_volume)]
    # Bytes that only a much slower plan saves are not worth saving.
    least = min(plan.seconds for plan in within)
    sane = [plan for plan in within if plan.seconds <= 2 * least]
    fewest = min(_volume(plan) for plan in sane)
    near = [plan for plan in sane if _volume(plan) <= _SLACK * fewest]
    # Of plans that are about as fast the one with the fewest kernels: it asks least of the host.
    fastest = min(plan.seconds for plan in near)
    equals = [plan for plan in near if plan.seconds <= _EQUAL * fastest]
    return min(equals, key=lambda plan: (plan.tasks, plan.seconds))


def _volume(plan: CholeskyPlan) -> int:
    """Bytes over the link that feeds the device; over the disk too, where there are two links."""
    return plan.link_bytes + (0 if plan.unified else plan.disk_read + plan.disk_write)


def _refusal(p: CholeskyProblem, limits: MatmulLimits, unified: bool, piece: int, variant: str | None) -> str:
    side = min(p.unit, p.n)
    need = slot_bytes(side, side, p.dtype.itemsize) * (3 + _IN_FLIGHT)
    where = "memory=" if unified else "gpu_memory="
    text = (
        f"a Cholesky factorisation of order {p.n} in {p.dtype} needs at least {format_bytes(need)} for its smallest tiles "
        f"({side} × {side}), but {where} leaves {format_bytes(limits.device)}"
    )
    if variant is not None:
        text += f" (variant={variant!r} may need more: leave it out)"
    if not unified and not p.hostless:
        text += f", and memory= leaves {format_bytes(limits.host)} for host slots of {format_bytes(piece)}"
    return text + "; raise the limit, or store the matrix in smaller chunks"
