"""Planning triangular solves, products and inverses: tiles, blocks, slots, bytes and seconds. Pure arithmetic.

All four algorithms keep a block of ``h × w`` tiles of the result on the device while panels of final tiles stream past:
in step k a panel of h tiles of the triangular factor meets one of w tiles. The panel with fewer tiles is *held* for the step, the
tiles of the other one come and go one by one. What memory is left over keeps tiles of the factor from pass to pass.

With a fast memory of S elements, blocks of side √S and leading terms only, the elements moved are

=================================  ==============  =========================
solve, product with n × m          ``n² m / √S``   flops ``n² m``
inverse, product with own adjoint  ``n³ / (3√S)``  flops ``n³ / 3``
=================================  ==============  =========================

which is ``flops / √S``, the constant of a matrix product. *Positions* number the tiles along n in the order of
computation: upwards or downwards, so that every algorithm here is written for a lower triangle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedPlan, host_level, slot_bytes, tile_pieces, tile_sides
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.triangular_cost import predict
from pycauset.errors import MemoryLimitError
from pycauset.tiling import ceil_div
from pycauset.units import format_bytes

__all__ = ["TriangularProblem", "lower_bound", "plan_triangular"]

#: A plan may move this much more than the bound plus reading the inputs and writing the output once, if it can choose.
_SLACK = 1.10


@dataclass(frozen=True, slots=True)
class TriangularProblem:
    """What the planner needs to know of a triangular algorithm and its operands: T, the result, and perhaps a third.

    Attributes
    ----------
    kind : {"solve", "product", "inverse", "gram"}
    n, m : int
        Order of the triangular matrix, and columns (rows on the right) of the other operand; m = n for the last two kinds.
    units : tuple of (int, int)
        Multiples for tile sides along n and m that make tiles whole chunks; the first pair that fits is taken.
    slotless, hostless : tuple of bool
        For each operand whether it needs no device slots, or no host slots (both False: on disk).
    disk_itemsize : tuple of float
        Bytes of an element in each operand's store.
    origin_itemsize : float
        Bytes of an element where the right-hand sides are read from, with "solve".
    grain : tuple of (int, int) or None
        The chunks of each operand's store, None for arrays.
    right : bool
        Whether T stands on the right: tiles of the result are then ``m × n``.
    forward : bool
        Whether positions ascend along the matrix (then a ragged tile comes last).
    checks : {"", "inline", "first"}
        Where T's diagonal is looked at for zeros.
    copies : bool
        Whether the result lies in memory and is first filled from a third operand.
    adjoint_first : bool
        With "gram", whether the tiles that meet a diagonal tile need to be transposed before.
    """

    kind: str
    n: int
    m: int
    dtype: np.dtype[Any]
    units: tuple[tuple[int, int], ...] = ((1, 1),)
    slotless: tuple[bool, ...] = (False, False)
    hostless: tuple[bool, ...] = (False, False)
    disk_itemsize: tuple[float, ...] = (8.0, 8.0)
    origin_itemsize: float = 8.0
    grain: tuple[tuple[int, int] | None, ...] = (None, None)
    right: bool = False
    forward: bool = True
    checks: str = ""
    copies: bool = False
    adjoint_first: bool = False

    @property
    def flops(self) -> float:
        """Real floating-point operations."""
        work = float(self.n) ** 2 * self.m
        return (4.0 if self.dtype.kind == "c" else 1.0) * (work if self.kind in ("solve", "product") else work / 3)

    def tile_shape(self, operand: int, tile: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the largest tile of an operand, clipped to the matrix."""
        b, c = min(tile[0], self.n), min(tile[1], self.m)
        return (b, b) if operand == 0 else (c, b) if self.right else (b, c)


def lower_bound(kind: str, n: float, m: float, fast: float) -> float:
    """Fewest elements to move: ``flops / √S`` plus every input and output once.

    Examples
    --------
    >>> lower_bound("solve", 1000, 1000, 10_000), lower_bound("inverse", 900, 900, 10_000)
    (12500500.0, 3240900.0)
    """
    triangle = n * (n + 1) / 2
    if kind in ("solve", "product"):
        return n * n * m / math.sqrt(fast) + triangle + 2 * n * m
    return n**3 / (3 * math.sqrt(fast)) + 2 * triangle


def plan_triangular(
    problem: TriangularProblem, limits: MatmulLimits, rates: Rates, *, unified: bool, piece: int = 8 << 20
) -> BlockedPlan:
    """Choose tiles, block and slots: the least predicted time among plans within 1.10 of the fewest bytes, if any is.

    Parameters
    ----------
    problem : TriangularProblem
    limits : MatmulLimits
        Bytes that slots may take.
    rates : Rates
        The machine.
    unified : bool
        Whether kernels work on host slots.
    piece : int
        Bytes of the largest piece that travels between store and host slot (a chunk, as a rule).

    Raises
    ------
    MemoryLimitError
        If no plan fits; the message says what the smallest one needs.
    """
    key = (problem, limits, rates.key, unified, piece)
    known = _known.get(key)
    if known is None:
        if len(_known) >= 64:
            _known.clear()
        known = _known[key] = _search(problem, limits, rates, unified, piece)
    return known


_known: dict[tuple[object, ...], BlockedPlan] = {}


def _search(p: TriangularProblem, limits: MatmulLimits, rates: Rates, unified: bool, piece: int) -> BlockedPlan:
    es = p.dtype.itemsize
    empty = BlockedPlan(unified, (p.n, p.m), p.dtype.name, (1, 1), (1, 1), (0,) * len(p.slotless), variant="panel of T")
    if not (p.n and p.m):
        return empty  # no result, no tasks
    fast = max(limits.device, 1) / es
    bound = lower_bound(p.kind, p.n, p.m, fast) * es
    best: tuple[tuple[bool, int, float], BlockedPlan] | None = None
    # Wide prefetching first; thinner tiles, then no prefetching at all, only where nothing else fits.
    for units, frugal in itertools.product(p.units, (False, True)):
        for tile in _tiles(p, units, fast, unified, all(p.slotless), frugal):
            for plan in _blocks(p, replace(empty, tile=tile), limits.device, fast, frugal):
                staged = plan if unified else _host_level(p, plan, limits.host, piece, rates)
                if staged is None:
                    continue
                made = replace(predict(p, staged, rates), bound=bound)
                # Times within a fifth of a percent are equal; then the fewest bytes win.
                moved = float(made.link_bytes + made.disk_read + made.disk_write)
                key = (made.link_bytes > _SLACK * bound, round(math.log(max(made.seconds, 1e-9)) / 0.002), moved)
                if best is None or key < best[0]:
                    best = key, made
        if best is not None:
            return best[1]
    raise MemoryLimitError(_refusal(p, limits, unified, piece))


def _tiles(
    p: TriangularProblem, units: tuple[int, int], fast: float, unified: bool, in_memory: bool, frugal: bool
) -> Iterator[tuple[int, int]]:
    """Tile sides along n and m: an eighth of the largest square block, or what kernels like best."""
    side = 1024 if in_memory else 1 << max(5, round(math.log2(math.sqrt(fast))) - 3)
    wanted = [side, side // 2, 1024] if unified else [2048, 1024, 512, 4096, side, side // 2]
    if in_memory:
        wanted = [1024, 512, 2048]
    elif frugal:
        wanted = [side // 2, side // 4, 32, 8]
    wanted = [w for w in wanted if w <= 2 * side] or [side]
    for b in tile_sides(p.n, units[0], wanted):
        if p.kind in ("inverse", "gram"):
            yield b, b
        else:
            yield from ((b, c) for c in tile_sides(p.m, units[1], (b, 2 * b) if not frugal else (b, 32, 8)))


def _blocks(p: TriangularProblem, plan: BlockedPlan, limit: int, fast: float, frugal: bool) -> Iterator[BlockedPlan]:
    """Blocks worth a look for these tiles, with slots at the device level; none if even the smallest does not fit."""
    b, c = plan.tile
    rows, cols = ceil_div(p.n, b), ceil_div(p.m, c)
    slot = [0 if free else slot_bytes(*p.tile_shape(i, plan.tile), p.dtype.itemsize) for i, free in enumerate(p.slotless)]
    guess = p.n / math.sqrt(fast)
    low, high = int(guess * 0.7), int(guess * 1.5) + 2
    counts = {*range(1, min(25, int(2 * guess) + 7)), *range(low, high, max(1, (high - low) // 32)), rows}
    heights = sorted({ceil_div(rows, blocks) for blocks in counts if 1 <= blocks <= rows}, reverse=True)
    for h, holds, deep in itertools.product(heights, ("panel of T", "panel of X"), (False, True)):
        if p.kind == "gram":
            if holds == "panel of T":
                fitted = _fit_gram(p, plan, slot, limit, h, rows, deep, frugal)
            else:
                continue
        else:
            fitted = _fit(p, plan, slot, limit, (h, rows, cols), holds, deep, frugal)
        if fitted is not None:
            yield fitted


def _fit(
    p: TriangularProblem,
    plan: BlockedPlan,
    slot: list[int],
    limit: int,
    geometry: tuple[int, int, int],
    holds: str,
    deep: bool,
    frugal: bool,
) -> BlockedPlan | None:
    """The widest block of height h with slots for streaming; ``deep`` prefetches a whole panel, else two tiles."""
    h, rows, cols = geometry
    streams = p.kind == "product" or h < rows
    if not streams and (holds != "panel of T" or deep):
        return None  # nothing streams past but T, tile by tile
    held_t = h if streams and holds == "panel of T" else 1
    ahead = 0 if frugal else 2
    least_t = held_t + (held_t if deep else ahead)
    # Panels of the second operand: B has its own slots in a product, X shares those of the block.
    x_slot = slot[2] if p.kind == "product" else slot[1]
    copying = (1 + ahead) * slot[2] if p.copies else 0

    def streaming(width: int) -> int:
        """Slots of X (or B) beside the block."""
        if not streams:
            return 0
        held = width if holds == "panel of X" else 1
        return held + (held if deep and held > 1 else ahead)

    def spare(width: int) -> int:
        """Slots of the result beside the block, for what is on its way out while the next block comes in."""
        return 0 if frugal or (h >= rows and width >= cols) else 2

    left = limit - least_t * slot[0] - copying
    w = min(cols, rows) if p.kind == "inverse" else cols
    while w >= 1 and h * w * slot[1] + spare(w) * slot[1] + streaming(w) * x_slot > left:
        # All terms grow with w: jump close to what fits, then go down one by one.
        w = min(w - 1, max(1, int(left // max(1, h * slot[1]))))
    if w < 1:
        return None
    w = ceil_div(cols, ceil_div(cols, w))  # blocks of even width
    block = h * w + spare(w)
    free = left - block * slot[1] - streaming(w) * x_slot
    keep = 0
    if cols > w:
        keep = min(rows * (rows + 1) // 2, free // slot[0] if slot[0] else 0)
        free -= keep * slot[0]
    more = min(held_t, free // slot[0]) if slot[0] else 0
    t_slots = least_t + keep + more
    if p.kind == "product":
        slots: tuple[int, ...] = (t_slots, block, streaming(w))
    else:
        slots = (t_slots, block + streaming(w), *((1 + ahead,) if p.copies else ()))
    return replace(plan, block=(h, w), slots=slots, keep=keep, variant=holds, device_bytes=_device_bytes(slot, slots))


def _fit_gram(
    p: TriangularProblem, plan: BlockedPlan, slot: list[int], limit: int, h: int, rows: int, deep: bool, frugal: bool
) -> BlockedPlan | None:
    """Slots for a square block of side h: one panel held, the tiles of the other coming and going."""
    ahead = 0 if frugal else 2
    block = (h * h if h < rows else h * (h + 1) // 2) + (0 if frugal or h >= rows else 2)
    # The diagonal block holds h tiles, the others h and the one that passes.
    panel = h + (0 if h >= rows else 1) + (h if deep else ahead)
    slots = (panel, block)
    needed = _device_bytes(slot, slots)
    if needed > limit:
        return None
    return replace(plan, block=(h, h), slots=slots, variant="panel of T", device_bytes=needed)


def _device_bytes(slot: list[int], slots: tuple[int, ...]) -> int:
    return sum(size * number for size, number in zip(slot, slots, strict=True))


def _host_level(p: TriangularProblem, plan: BlockedPlan, limit: int, piece: int, rates: Rates) -> BlockedPlan | None:
    """Give the host level its slots: two steps on their way in, a row on its way out, then tiles of T worth keeping."""
    es = p.dtype.itemsize
    pieces = [0 if free else tile_pieces(*p.tile_shape(i, plan.tile), p.grain[i], piece, es) for i, free in enumerate(p.hostless)]
    h, w = plan.block
    ahead = [2 * min(h, 8), 2 * min(w, 8) + 2, 2 * min(w, 8)][: len(pieces)]
    level = host_level(pieces, ahead, limit, piece)
    if level is None:
        return None
    slots, keep = level.slots, plan.keep
    passes = ceil_div(ceil_div(p.m, plan.tile[1]), w)
    # A kept tile saves a read in each later pass and costs the pinning of its memory, behind which reads have to wait.
    if pieces[0] and p.kind != "gram" and passes > 1 and (passes - 1) * rates.pin > rates.read:
        rows = ceil_div(p.n, plan.tile[0])
        more = min(rows * (rows + 1) // 2 - keep, level.spare // pieces[0])
        keep += more
        slots += more * pieces[0]
    return replace(plan, host_keep=keep, host_slots=slots, host_slot_bytes=level.slot_bytes, host_bytes=slots * level.slot_bytes)


def _refusal(p: TriangularProblem, limits: MatmulLimits, unified: bool, piece: int) -> str:
    es = p.dtype.itemsize
    unit_n, unit_m = p.units[-1]
    tile = min(p.n, max(unit_n, 8)), min(p.m, max(unit_m, 8))
    least = (1, 2, 0) if p.kind == "solve" else (1, 2) if p.kind == "inverse" else (2, 1) if p.kind == "gram" else (1, 1, 1)
    need = sum(
        number * slot_bytes(*p.tile_shape(i, tile), es)
        for i, (number, free) in enumerate(zip(least, p.slotless, strict=False))
        if not free
    )
    what = {
        "solve": f"a triangular solve of order {p.n} with {p.m} right-hand sides",
        "product": f"a triangular product of order {p.n} with {p.m} columns",
        "inverse": f"a triangular inverse of order {p.n}",
        "gram": f"the product of a triangular matrix of order {p.n} with its adjoint",
    }[p.kind]
    where = "memory=" if unified else "gpu_memory="
    text = (
        f"{what} in {p.dtype} needs at least {format_bytes(need)} for its smallest tiles, "
        f"but {where} leaves {format_bytes(limits.device)}"
    )
    if not unified and not all(p.hostless):
        text += f", and memory= leaves {format_bytes(limits.host)} for host slots of {format_bytes(piece)}, "
        text += "of which a tile takes several"
    return text + f"; raise the limit, or store the operands in smaller chunks (now {unit_n} × {unit_n})"
