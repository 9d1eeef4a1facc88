"""Planning a product: tile and block shapes, order, slots, and the bytes and seconds that follow. Pure arithmetic.

The order is one and the same on every device. C is cut into blocks; a block stays resident while panels of A and B
stream past (depth ``tile_k``), so that each element of the block is written once and each panel element is used for a
whole block side. Blocks are visited in serpentine order, and each pass over k runs opposite to the one before, so that
neighbouring passes share the panels at their turn. In the last ``drain`` steps of a pass the loops change places: each
strip of the block is finished in turn, and travels home while the next one computes.

For a block of side b the bytes are ``2mnk/b`` plus reading or writing C: the lower bound is ``2mnk/√S`` for a fast
memory of S elements, reached as b approaches √S.

References
----------
.. [1] J.-W. Hong and H. T. Kung, "I/O complexity: the red-blue pebble game", STOC 1981.
.. [2] T. M. Smith, B. Lowery, J. Langou and R. van de Geijn, "A tight I/O lower bound for matrix multiplication",
   arXiv:1702.02017 (the constant 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_cost import predict
from pycauset.errors import MemoryLimitError
from pycauset.tiling import ceil_div, round_up, serpentine
from pycauset.units import format_bytes

__all__ = ["MatmulLimits", "MatmulPlan", "MatmulProblem", "lower_bound", "plan_matmul"]

#: A plan may move this much more than the bound plus reading the inputs and writing the output once, if it can choose.
_SLACK = 1.10


@dataclass(frozen=True, slots=True)
class MatmulProblem:
    """``C = op(A) op(B)``, (m, k) times (k, n): sizes, and what the geometry of the stores asks for.

    ``units`` are the multiples that tile sides along m, n, k should have so that tiles are whole chunks. ``slotless`` says
    for A, B and C whether they need no device slots, ``hostless`` whether they need no host slots (both False: on disk).
    ``a_stacks`` tells whether a tile several chunks tall is contiguous as stored. ``rank_k`` marks B = op(A)ᵀ or op(A)ᴴ:
    only the lower triangle is computed. ``grain`` has the chunks of A, B and C as op() sees them, None for arrays.
    """

    m: int
    n: int
    k: int
    dtype: np.dtype[Any]
    units: tuple[int, int, int] = (1, 1, 1)
    slotless: tuple[bool, bool, bool] = (False, False, False)
    hostless: tuple[bool, bool, bool] = (False, False, False)
    disk_itemsize: tuple[float, float, float] | None = None
    a_stacks: bool = True
    rank_k: bool = False
    reads_c: bool = False
    grain: tuple[tuple[int, int] | None, ...] = (None, None, None)

    @property
    def flops(self) -> float:
        """Real floating-point operations."""
        full = (8.0 if self.dtype.kind == "c" else 2.0) * self.m * self.n * self.k
        return full * (self.n + 1) / (2 * self.n) if self.rank_k and self.n else full


@dataclass(frozen=True, slots=True)
class MatmulLimits:
    """Bytes that slots may take: at the device level, and (unless the device is unified) at the host level."""

    device: int
    host: int = 0


@dataclass(frozen=True, slots=True)
class MatmulPlan:
    """Everything decided about a product before it starts. Bytes and seconds are predictions in closed form.

    Attributes
    ----------
    tile : (int, int, int)
        Tile sides along m, n and k: A's tiles are tile_m × tile_k, B's tile_k × tile_n, C's tile_m × tile_n.
    block : (int, int)
        Tiles of C that stay resident together, down and across.
    drain : int
        Steps in k at the end of each pass in which C is finished strip by strip.
    keep_a, keep_b : int
        Steps in k of A's and B's panels that stay on the device from one pass to the next.
    host_keep_a, host_keep_b : int
        The same for host slots, B's counted over a whole row of blocks.
    slots : (int, int, int)
        Device slots for tiles of A, B and C.
    upload, download, disk_read, disk_write : int
        Bytes over each link; on a unified device the first two are 0.
    bound : float
        The fewest bytes over the device's link: lower bound plus reading inputs and writing the output once.
    seconds : float
        Predicted time.
    device_bytes, host_bytes : int
        Memory for slots.
    """

    problem: MatmulProblem
    unified: bool
    tile: tuple[int, int, int]
    block: tuple[int, int]
    drain: int
    keep_a: int
    keep_b: int
    host_keep_a: int
    host_keep_b: int
    slots: tuple[int, int, int]
    host_slots: int
    host_slot_bytes: int
    upload: int = 0
    download: int = 0
    disk_read: int = 0
    disk_write: int = 0
    bound: float = 0.0
    seconds: float = 0.0
    stages: tuple[tuple[str, float], ...] = ()
    device_bytes: int = 0
    host_bytes: int = 0

    @property
    def link_bytes(self) -> int:
        """Bytes over the link that feeds the device: the disk's on a unified device, PCIe's on a GPU."""
        return self.disk_read + self.disk_write if self.unified else self.upload + self.download

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along m, n and k."""
        p = self.problem
        return ceil_div(p.m, self.tile[0]), ceil_div(p.n, self.tile[1]), ceil_div(p.k, self.tile[2])

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks down and across."""
        rows, cols, _ = self.grid
        return ceil_div(rows, self.block[0]), ceil_div(cols, self.block[1])

    @property
    def tasks(self) -> int:
        """How many kernels the plan runs."""
        rows, cols, steps = self.grid
        return (rows * (rows + 1) // 2 if self.problem.rank_k else rows * cols) * steps

    def passes(self) -> Iterator[tuple[int, int]]:
        """Blocks (I, J) in the order of the passes over k."""
        down, across = self.blocks
        if self.problem.rank_k:
            for i in range(down):
                yield from ((i, j) for j in (range(i + 1) if i % 2 == 0 else range(i, -1, -1)))
        else:
            yield from serpentine(down, across)


def lower_bound(m: float, n: float, k: float, fast: float, *, rank_k: bool = False) -> float:
    """Fewest elements to move: 2mnk/√S (half of that for C = AAᵀ over square blocks) plus every input and output once.

    Examples
    --------
    >>> lower_bound(1000, 1000, 1000, 10_000)
    23000000.0
    """
    volume = 2 * m * n * k / math.sqrt(fast)
    if rank_k:
        return volume / 2 + n * k + n * (n + 1) / 2
    return volume + m * k + k * n + m * n


# -- choosing ----------------------------------------------------------------------------------------------------------


def _candidates(count: int, around: float) -> list[int]:
    """Numbers of blocks to try along one side: all small ones, then a neighbourhood of the best guess."""
    low, high = int(around * 0.75), int(around * 1.35) + 2
    near = [*range(1, min(25, int(2 * around) + 7)), *range(low, high, max(1, (high - low) // 48))]
    return sorted({r for r in [*near, count] if 1 <= r <= count})  # ``count``: the smallest blocks of all, where memory is scarce


def _fit(
    problem: MatmulProblem,
    limits: MatmulLimits,
    unified: bool,
    tall: bool,
    tile_n: int,
    tile_k: int,
    blocks_down: int,
    drain: int,
) -> MatmulPlan | None:
    """The widest block for ``blocks_down`` blocks along m, with slots for streaming, or None when nothing fits.

    A ``tall`` tile spans the whole block, which makes few, large kernels; otherwise tiles are about square, which wastes
    less memory on tiles in flight.
    """
    p, es = problem, problem.dtype.itemsize
    unit_m = p.units[0]
    height = round_up(ceil_div(p.m, blocks_down), unit_m)
    tile_m = height if tall else min(tile_n if p.rank_k else round_up(tile_n, unit_m), round_up(p.m, unit_m))
    down = ceil_div(height, tile_m)
    steps = ceil_div(p.k, tile_k)
    drain = max(1, min(steps, drain))
    slot = [
        0 if free else round_up(size * es, 4096)
        for size, free in zip((tile_m * tile_k, tile_k * tile_n, tile_m * tile_n), p.slotless, strict=True)
    ]

    def stream_slots(rows: int) -> tuple[int, int]:
        """Slots of A beside what a step needs, and of C beside the block: what is on its way in or out."""
        return rows * drain + (min(rows, 3) if steps > drain else 0), (2 if rows == 1 and not unified else min(rows, 3))

    a_slots, spare = stream_slots(down)
    left = limits.device - a_slots * slot[0] - spare * slot[2] - 2 * slot[1]
    per_column = down * slot[2] + slot[1]  # a strip of C and its tile of B
    if left < per_column or left < 0:
        return None
    columns = ceil_div(p.n, tile_n)
    across = min(columns, int(left // per_column) if per_column else columns)
    across = ceil_div(columns, ceil_div(columns, across))  # blocks of even width
    if p.rank_k:
        across = down = min(across, down)
        a_slots, spare = stream_slots(down)
    if across * tile_n >= p.n and down * tile_m >= p.m:
        spare = 0  # one block: nothing follows it
    plan = MatmulPlan(
        p,
        unified,
        (tile_m, tile_n, tile_k),
        (down, across),
        drain,
        0,
        0,
        0,
        0,
        (a_slots, across + 2, down * across + spare),
        0,
        0,
    )
    return _keep(plan, limits.device - sum(s * count for s, count in zip(slot, plan.slots, strict=True)), slot)


def _keep(plan: MatmulPlan, free: int, slot: list[int]) -> MatmulPlan:
    """Spend what is left on panels that stay from one pass to the next, and on deeper prefetching."""
    steps = plan.grid[2]
    rows, cols = plan.blocks
    down, across = plan.block
    keep_a = keep_b = 0
    a_slots, b_slots, c_slots = plan.slots
    if cols > 1 or plan.problem.rank_k:
        # The drain's steps are resident at the turn already; keeping them costs nothing but a step to stream through.
        extra = free // (down * slot[0]) if slot[0] else steps
        extra = max(0, min(extra, steps + 1 - a_slots // down))
        a_slots += extra * down
        free -= extra * down * slot[0]
        keep_a = steps if a_slots // down >= steps else max(0, a_slots // down - 2)
    elif rows > 1:
        extra = free // (across * slot[1]) if slot[1] else steps
        if extra >= steps:
            extra, keep_b = steps, steps
        else:
            extra = max(0, extra - 1)
            keep_b = extra
        b_slots += extra * across
        free -= extra * across * slot[1]
    ahead = min(free // slot[1] if slot[1] else 0, across)
    return replace(plan, keep_a=keep_a, keep_b=keep_b, slots=(a_slots, b_slots + max(0, ahead), c_slots))


def _host_level(plan: MatmulPlan, limit: int, piece: int, rates: Rates) -> MatmulPlan | None:
    """Give the host level its slots: enough to stage every stage's tiles, then panels worth keeping."""
    p, es = plan.problem, plan.problem.dtype.itemsize
    if all(p.hostless):
        return plan
    tile_m, tile_n, tile_k = plan.tile
    slots = limit // piece

    def pieces_of(operand: int, rows: int, cols: int) -> int:
        rows, cols = max(rows, 1), max(cols, 1)
        grain = p.grain[operand]
        if grain is None:
            return ceil_div(rows, max(1, piece // (cols * es)))
        across = [ceil_div(side, unit) + (side % unit != 0) for side, unit in zip((rows, cols), grain, strict=True)]
        height, width = min(grain[0], rows), min(grain[1], cols)
        return across[0] * across[1] * ceil_div(height, max(1, piece // (width * es)))

    step_a = 0 if p.hostless[0] else plan.block[0] * pieces_of(0, min(tile_m, p.m), min(tile_k, p.k))
    step_b = 0 if p.hostless[1] else pieces_of(1, min(tile_k, p.k), min(tile_n, p.n)) * plan.block[1]
    one_a = 0 if p.hostless[0] else pieces_of(0, min(tile_m, p.m), min(tile_k, p.k))
    one_b = 0 if p.hostless[1] else pieces_of(1, min(tile_k, p.k), min(tile_n, p.n))
    one_c = 0 if p.hostless[2] else pieces_of(2, min(tile_m, p.m), min(tile_n, p.n))
    least = max(2 * one_a, 2 * one_b, one_c) + 1
    if slots < least:
        return None
    # Staging: two steps of A and B on their way in, two strips of C on their way out.
    staging = min(slots, max(least, 2 * step_a + 2 * step_b + 2 * one_c))
    left = slots - staging
    rows, cols = plan.blocks
    steps = plan.grid[2]
    keep_a = keep_b = 0
    # A kept panel saves a read in each later pass and costs the pinning of its memory, behind which reads have to wait.
    if step_a and cols > 1 and (cols - 1) * rates.pin > rates.read:
        keep_a = _retention(left // step_a, steps, plan.keep_a)
        left -= keep_a * step_a
    if step_b and rows > 1 and not p.rank_k and (rows - 1) * rates.pin > rates.read:
        keep_b = _retention(left // step_b, steps * cols, plan.keep_b)
        left -= keep_b * step_b
    used = staging + keep_a * step_a + keep_b * step_b
    return replace(plan, host_keep_a=keep_a, host_keep_b=keep_b, host_slots=used, host_slot_bytes=piece)


def _retention(fits: int, steps: int, device: int) -> int:
    """How many steps before a turn the host keeps: all, or as many as fit without clashing with the device's own."""
    if fits >= steps:
        return steps
    return max(0, min(fits, steps - device - 1)) if fits > device else 0


def plan_matmul(problem: MatmulProblem, limits: MatmulLimits, rates: Rates, *, unified: bool, piece: int = 8 << 20) -> MatmulPlan:
    """Choose tiles, block and order: the least predicted time among plans within 1.10 of the fewest bytes, if any is.

    Parameters
    ----------
    problem : MatmulProblem
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


_known: dict[tuple[object, ...], MatmulPlan] = {}


def _search(problem: MatmulProblem, limits: MatmulLimits, rates: Rates, unified: bool, piece: int) -> MatmulPlan:
    p, es = problem, problem.dtype.itemsize
    if not (p.m and p.n):
        return MatmulPlan(p, unified, (1, 1, 1), (1, 1), 1, 0, 0, 0, 0, (0, 0, 0), 0, 0)  # no result, no tasks
    fast = max(limits.device, 1) / es
    bound = lower_bound(p.m, p.n, p.k, fast, rank_k=p.rank_k) * es
    guess = p.m / math.sqrt(fast)
    side = 1 << max(6, round(math.log2(math.sqrt(fast))) - 3)  # an eighth of the largest square block
    wide = (side, 1024) if unified else (2048, 1024, 4096, side)
    deep = (side, 1024) if unified else (1024, 512, 2048, side // 2)
    unit_n = max(p.units[1], p.units[0]) if p.rank_k else p.units[1]
    counts = _candidates(ceil_div(p.m, p.units[0]), guess)
    best: tuple[tuple[bool, int, float], MatmulPlan] | None = None
    # Tall tiles first: square ones are worth a look only where tall ones cannot be or move too much.
    # Where all of them do, half as thin panels leave more room for the block.
    for thin, tall in itertools.product((1, 2), ([True] if p.a_stacks and not p.rank_k else []) + [False]):
        if best is not None and (not best[0][0] or (thin > 1 and side // 4 < max(p.units[2], unit_n))):
            break
        for tile_k, tile_n in itertools.product(
            _sides(p.k, p.units[2], deep, side // thin), _sides(p.n, unit_n, wide, side // thin)
        ):
            drains = (1,) if unified else sorted({ceil_div(depth, tile_k) for depth in (8192, 4096, 1024, 1)})
            for drain, blocks_down in itertools.product(drains, counts):
                plan = _fit(p, limits, unified, tall, tile_n, tile_k, blocks_down, drain)
                if plan is not None and not unified:
                    plan = _host_level(plan, limits.host, piece, rates)
                if plan is None:
                    continue
                plan = replace(predict(plan, rates), bound=bound)
                # Times within a fifth of a percent are equal; then the fewest bytes win.
                moved = float(plan.link_bytes + plan.disk_read + plan.disk_write)
                key = (plan.link_bytes > _SLACK * bound, round(math.log(max(plan.seconds, 1e-9)) / 0.002), moved)
                if best is None or key < best[0]:
                    best = key, plan
    if best is None:
        raise MemoryLimitError(_refusal(p, limits, unified, piece))
    return best[1]


def _sides(size: int, unit: int, wanted: tuple[int, ...], most: int) -> list[int]:
    """Tile sides near the wanted ones: multiples of the unit, no longer than the matrix, thin against the largest block."""
    whole = round_up(max(size, 1), unit)
    sides = [min(whole, unit * max(1, round(w / unit))) for w in wanted if w <= 2 * most] or [min(whole, unit)]
    return list(dict.fromkeys([*sides, min(whole, unit * max(1, most // 2 // unit))]))


def _refusal(p: MatmulProblem, limits: MatmulLimits, unified: bool, piece: int) -> str:
    es = p.dtype.itemsize
    unit_m, unit_n, unit_k = (min(u, s) if s else u for u, s in zip(p.units, (p.m, p.n, p.k), strict=True))
    # Tiles thinner than this are not tried along n and k.
    tile_n, tile_k = (max(u, min(s, round_up(32, u))) for u, s in ((unit_n, p.n), (unit_k, p.k)))
    tile_m = tile_n if p.rank_k else unit_m
    need = sum(
        count * round_up(size * es, 4096) for count, size in ((2, tile_m * tile_k), (3, tile_k * tile_n), (3, tile_m * tile_n))
    )
    where = "memory=" if unified else "gpu_memory="
    text = (
        f"a product of shape ({p.m}, {p.k}) @ ({p.k}, {p.n}) in {p.dtype} needs at least {format_bytes(need)} "
        f"for its smallest tiles, but {where} leaves {format_bytes(limits.device)}"
    )
    if not unified and not all(p.hostless):
        text += f", and memory= leaves {format_bytes(limits.host)} for host slots of {format_bytes(piece)}, "
        text += "of which two tiles take several"
    now = f"{unit_m} × {unit_k} and {unit_k} × {unit_n}"
    return text + f"; raise the limit, or store the operands in smaller chunks (now {now})"
