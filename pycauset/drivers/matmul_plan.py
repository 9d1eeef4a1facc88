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

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_cost import predict
from pycauset.drivers.matmul_draft import Shape, fit, heights, host_level, keep, rough
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
        What a good plan moves over the device's link, in bytes: 2mnk/√S plus reading inputs and writing the output once.
    least : float
        What no order of the operations can go below: the larger of 2mnk/√S - 2S and inputs and output once [2]_.
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
    keep_a: int = 0
    keep_b: int = 0
    host_keep_a: int = 0
    host_keep_b: int = 0
    slots: tuple[int, int, int] = (0, 0, 0)
    host_slots: int = 0
    host_slot_bytes: int = 0
    upload: int = 0
    download: int = 0
    disk_read: int = 0
    disk_write: int = 0
    bound: float = 0.0
    least: float = 0.0
    seconds: float = 0.0
    stages: tuple[tuple[str, float], ...] = ()
    device_bytes: int = 0
    host_bytes: int = 0

    @property
    def link_bytes(self) -> int:
        """Bytes over the link that feeds the device: the disk's on a unified device, PCIe's on a GPU."""
        return self.disk_read + self.disk_write if self.unified else self.upload + self.download

    @property
    def compute_bound(self) -> bool:
        """Whether kernels take longer than every transfer."""
        return max(self.stages, key=lambda stage: stage[1])[0] == "compute"

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


def _bounds(p: MatmulProblem, fast: float) -> tuple[float, float]:
    """``bound`` and ``least`` of a plan, in bytes, with ``fast`` elements of fast memory. What lies in it is not moved."""
    sizes = p.m * p.k, 0 if p.rank_k else p.k * p.n, p.n * (p.n + 1) / 2 if p.rank_k else p.m * p.n
    once = sum(size for size, free in zip(sizes, p.slotless, strict=True) if not free)
    once += sizes[2] if p.reads_c and not p.slotless[2] else 0
    volume = lower_bound(p.m, p.n, p.k, fast, rank_k=p.rank_k) - sum(sizes)
    beyond = fast + sum(size for size, free in zip(sizes, p.slotless, strict=True) if free)
    least = 2 * p.m * p.n * p.k / math.sqrt(beyond) * (math.sqrt(0.125) if p.rank_k else 1) - 2 * beyond
    return (volume + once) * p.dtype.itemsize, max(least, once) * p.dtype.itemsize


# -- choosing ----------------------------------------------------------------------------------------------------------


#: Parts of a chunk that tiles may be deep, the last only where memory is scarce: parts of chunks are read by way of buffers.
_SHARES = (1, 2, 4)
#: Candidates of one family of tiles that are worth an exact prediction, those that a rough one puts first.
_SHORTLIST = 40


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

    Notes
    -----
    Where whole chunks are too large, tiles may be a half or a quarter of a chunk deep: then a chunk of A may be read up to
    that many times over for one use. Bytes count what is used. Tiles of C are whole chunks always, since they are written.
    """
    key = (problem, limits, rates.key, unified, piece)
    known = _known.get(key)
    if known is None:
        if len(_known) >= 64:
            _known.clear()
        known = _known[key] = _search_thinner(problem, limits, rates, unified, piece)
    return known


def _search_thinner(problem: MatmulProblem, limits: MatmulLimits, rates: Rates, unified: bool, piece: int) -> MatmulPlan:
    for share in _SHARES:
        try:
            return _search(_thinner(problem, share), limits, rates, unified, piece)
        except MemoryLimitError:
            if share == _SHARES[-1]:
                raise
    raise AssertionError("_SHARES is not empty")


def _thinner(p: MatmulProblem, share: int) -> MatmulProblem:
    """The problem with tiles that need only be this part of a chunk deep, where chunks can be cut so."""
    unit = p.units[2]
    return replace(p, units=(*p.units[:2], unit // share)) if unit % share == 0 else p


_known: dict[tuple[object, ...], MatmulPlan] = {}


def _search(problem: MatmulProblem, limits: MatmulLimits, rates: Rates, unified: bool, piece: int) -> MatmulPlan:
    p, es = problem, problem.dtype.itemsize
    if not (p.m and p.n):
        return MatmulPlan(p, unified, (1, 1, 1), (1, 1), 1)  # no result, no tasks
    fast = max(limits.device, 1) / es
    bound, least = _bounds(p, fast)
    guess = p.m / math.sqrt(fast) if not all(p.slotless) else 1.0
    side = 1 << max(6, round(math.log2(math.sqrt(fast))) - 3)  # an eighth of the largest square block
    wide = (side, 1024) if unified else (2048, 1024, 4096, side)
    deep = (side, 1024) if unified else (1024, 512, 2048, side // 2)
    unit_n = max(p.units[1], p.units[0]) if p.rank_k else p.units[1]
    tried = heights(p, guess)
    best: tuple[tuple[bool, int, float], MatmulPlan] | None = None
    # Tall tiles first: square ones are worth a look only where tall ones cannot be or move too much.
    # Where all of them do, half as thin panels leave more room for the block.
    for thin, tall in itertools.product((1, 2), ([True] if p.a_stacks and not p.rank_k else []) + [False]):
        if best is not None and thin > 1 and side // 4 < max(p.units[2], unit_n):
            break
        good = best is not None and not best[0][0]
        if good and best is not None and best[1].compute_bound:
            break
        before = best[1].seconds if best is not None else math.inf
        sides = itertools.product(_sides(p.k, p.units[2], deep, side // thin), _sides(p.n, unit_n, wide, side // thin))
        for shape in _shortlist(p, limits, rates, unified, bound, tall, sides, tried):
            draft = MatmulPlan(p, unified, shape.tile, shape.block, shape.drain, slots=shape.slots, bound=bound, least=least)
            plan: MatmulPlan | None = keep(draft, shape.free, shape.slot)
            if plan is not None and not unified:
                plan = host_level(plan, limits.host, piece, rates)
            if plan is None:
                continue
            plan = predict(plan, rates)
            # Times within a fifth of a percent are equal; then the fewest bytes win.
            moved = float(plan.link_bytes + plan.disk_read + plan.disk_write)
            key = (plan.link_bytes > _SLACK * bound, round(math.log(max(plan.seconds, 1e-9)) / 0.002), moved)
            # More and smaller kernels need a reason where fewer will do.
            if best is None or (key < best[0] and not (good and plan.seconds > 0.9 * before)):
                best = key, plan
    if best is None:
        raise MemoryLimitError(_refusal(p, limits, unified, piece))
    return best[1]


def _shortlist(
    p: MatmulProblem,
    limits: MatmulLimits,
    rates: Rates,
    unified: bool,
    bound: float,
    tall: bool,
    sides: Iterable[tuple[int, int]],
    tried: list[int],
) -> list[Shape]:
    """The most promising blocks of each tile shape, then of all of them, by :func:`_rough`.

    A ``tall`` tile spans the whole block, which makes few, large kernels; otherwise tiles are about square, which wastes
    less memory on tiles in flight.
    """
    unit_m = p.units[0]
    ranked: list[tuple[tuple[bool, float, float], Shape]] = []
    for tile_k, tile_n in sides:
        square = min(tile_n if p.rank_k else round_up(tile_n, unit_m), round_up(p.m, unit_m))
        # Blocks of whole tiles: heights between two multiples make the same block.
        shapes = {((height, 1) if tall else (square, ceil_div(height, square))): height for height in tried}
        drains = (1,) if unified else sorted({ceil_div(depth, tile_k) for depth in (8192, 4096, 1024, 1)})
        family = []
        for ((tile_m, _), height), drain in itertools.product(shapes.items(), drains):
            shape = fit(p, limits.device, unified, (tile_m, tile_n, tile_k), height, drain)
            if shape is not None:
                moved, seconds = rough(p, shape, rates, unified)
                family.append(((moved > _SLACK * bound, seconds, moved), shape))
        ranked += heapq.nsmallest(_SHORTLIST // 4, family)
    return [shape for _, shape in heapq.nsmallest(_SHORTLIST, ranked)]


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
    counts = (2, 3, 2 if unified else 3)
    sizes = (tile_m * tile_k, tile_k * tile_n, tile_m * tile_n)
    need = sum(count * round_up(size * es, 4096) for count, size in zip(counts, sizes, strict=True))
    where = "memory=" if unified else "gpu_memory="
    text = (
        f"a product of shape ({p.m}, {p.k}) @ ({p.k}, {p.n}) in {p.dtype} needs at least {format_bytes(need)} "
        f"for its smallest tiles, but {where} leaves {format_bytes(limits.device)}"
    )
    if not unified and not all(p.hostless):
        text += f", and memory= leaves {format_bytes(limits.host)} for host slots of {format_bytes(piece)}, "
        text += "of which two tiles take several"
    now = " and ".join(f"{h} × {w}" for h, w in (g for g in p.grain[:2] if g is not None))
    return text + "; raise the limit" + (f", or store the operands in smaller chunks (now {now})" if now else "")
