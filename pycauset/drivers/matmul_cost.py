"""What a plan of a product costs: bytes over each link, and seconds, in closed form.

The counts follow the cache planner exactly (tests compare them), without walking through the tasks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from pycauset.devices.rates import Rates
from pycauset.tiling import ceil_div, round_up

if TYPE_CHECKING:
    from pycauset.drivers.matmul_plan import MatmulPlan, MatmulProblem

__all__ = ["STRIDED_COPY", "ends_seconds", "predict", "turn_seconds"]

#: Rate of 2-D copies between a tile and a larger pinned array, to that of contiguous ones (benchmarks/results, H200).
STRIDED_COPY = 0.6
#: Pinned bytes that every streamed run takes; what it pins beyond them is paid by the plan that wants it.
_STAGING = 1 << 30


# -- bytes in closed form ----------------------------------------------------------------------------------------------


def _steps_width(k: int, tile_k: int, skip: int, ascending: bool) -> int:
    """Columns of A in a pass over k, without its first ``skip`` steps."""
    steps = ceil_div(k, tile_k)
    if skip >= steps:
        return 0
    head = skip * tile_k
    if not ascending and skip:
        head -= steps * tile_k - k  # the ragged step comes first
    return k - head


def _traffic(plan: MatmulPlan) -> tuple[int, int, int, int]:
    """Elements of A and B loaded to the device, and of A and B read from the store.

    In closed form, whatever the number of passes: which way a pass runs over k and where the next one turns depend on the
    parity of its row of blocks alone, so rows are summed by parity.
    """
    p = plan.problem
    if not p.k:
        return 0, 0, 0, 0
    if p.rank_k:
        return _traffic_rank_k(plan)
    down, across = plan.blocks
    height, width = plan.tile[0] * plan.block[0], plan.tile[1] * plan.block[1]
    k, tile_k = p.k, plan.tile[2]
    steps = ceil_div(k, tile_k)

    # The panel of A is used in every pass of its row of blocks: loaded in the first, topped up in the others.
    def of_a(skip: int) -> int:
        up, back = _steps_width(k, tile_k, skip, True), _steps_width(k, tile_k, skip, False)
        total = 0
        for odd in range(min(2, down)):
            ascending = (across - 1 + odd * across % 2) // 2  # passes after the first one that run upwards
            total += _rows_at(p.m, height, down, odd) * (k + ascending * up + (across - 1 - ascending) * back)
        return total

    # The panel of B is shared at the turn from one row of blocks to the next, and further back by what the host keeps.
    def of_b(skip: int) -> int:
        whole, rest = divmod(min(skip, steps * across), steps)
        saved = 0
        for odd in range(2):
            turns = (down - odd + 1) // 2 - (not odd)  # rows of blocks of this parity after the first row
            last = p.n - (across - 1) * width  # columns of the last block of B, which an odd row meets first
            columns = min(whole * width, p.n) if not odd else min(whole, 1) * last + max(0, whole - 1) * width
            here = columns * k
            if rest:
                block = last if whole == (0 if odd else across - 1) else width
                here += block * (k - _steps_width(k, tile_k, rest, (odd * across + whole) % 2 == 0))
            saved += turns * here
        return down * p.n * k - saved

    return (
        of_a(plan.keep_a),
        of_b(min(plan.keep_b, steps)),
        of_a(max(plan.keep_a, plan.host_keep_a)),
        of_b(max(plan.keep_b, plan.host_keep_b)),
    )


def _rows_at(size: int, block: int, count: int, odd: int) -> int:
    """Rows in all blocks of one parity, of ``count`` blocks of which the last may be shorter."""
    rows = (count - odd + 1) // 2 * block
    return rows - (count * block - size) if (count - 1) % 2 == odd else rows


def _traffic_rank_k(plan: MatmulPlan) -> tuple[int, int, int, int]:
    """As :func:`_traffic`, for the lower triangle of blocks: row i has i + 1 passes, and directions recur every four rows."""
    p = plan.problem
    k, tile_k = p.k, plan.tile[2]
    side = plan.tile[0] * plan.block[0]
    rows = plan.blocks[0]
    last = p.n - (rows - 1) * side

    def of_a(skip: int) -> int:
        up, back = _steps_width(k, tile_k, skip, True), _steps_width(k, tile_k, skip, False)

        def widths(count: int, sum_i: int, first: int) -> int:
            """Columns of A in ``count`` rows of blocks with i = first modulo 4 that sum to ``sum_i``."""
            bit = _starts_odd(first)  # the second pass of the row runs upwards
            ascending = (sum_i + count * (bit - (first + bit) % 2)) // 2
            return count * k + ascending * up + (sum_i - ascending) * back

        total = last * widths(1, rows - 1, rows - 1)
        for first in range(min(4, rows - 1)):
            count = ceil_div(rows - 1 - first, 4)
            total += side * widths(count, count * first + 2 * count * (count - 1), first)
        return total

    # Row i reads the i blocks before it as B; an even row starts where the odd one before it ended.
    loaded_b = side * k * (rows * (rows - 1) // 2)
    for first in (2, 4):
        turns = ceil_div(rows - first, 4) if rows > first else 0
        loaded_b -= turns * side * (k - _steps_width(k, tile_k, plan.keep_b, not _starts_odd(first)))
    return of_a(plan.keep_a), loaded_b, of_a(max(plan.keep_a, plan.host_keep_a)), loaded_b


def _starts_odd(row: int) -> int:
    """Whether the first pass of this row of blocks has an odd number, and so runs downwards."""
    return row * (row + 1) // 2 % 2


# -- seconds -----------------------------------------------------------------------------------------------------------


class _Block(Protocol):
    """What the seconds between two passes depend on: a plan, or the draft of one."""

    @property
    def tile(self) -> tuple[int, int, int]: ...
    @property
    def block(self) -> tuple[int, int]: ...
    @property
    def drain(self) -> int: ...
    @property
    def slots(self) -> tuple[int, int, int]: ...


def _home_seconds(p: MatmulProblem, shape: _Block, rates: Rates) -> float:
    """How long a strip of the block takes home from a GPU."""
    strip = shape.tile[0] * shape.block[0] * shape.tile[1] * p.dtype.itemsize
    return strip / (STRIDED_COPY if p.hostless[2] else 1.0) / rates.download


def ends_seconds(p: MatmulProblem, shape: _Block, rates: Rates, reads: bool, writes: bool, *, unified: bool = False) -> float:
    """Filling and draining: the first tiles of A and B arrive before anything runs, and what is finished last goes home alone."""
    tile_m, tile_n, tile_k = shape.tile
    es = p.dtype.itemsize
    first = (tile_m + tile_n) * min(tile_k, p.k) * es
    strip = tile_m * (1 if unified else shape.block[0]) * tile_n * es
    seconds = first / rates.read * reads + strip / rates.write * writes
    if unified:
        return seconds
    return seconds + first / (STRIDED_COPY if any(p.hostless[:2]) else 1.0) / rates.upload + _home_seconds(p, shape, rates)


def turn_seconds(p: MatmulProblem, shape: _Block, compute: float, rates: Rates) -> float:
    """How long a GPU waits between two passes, of a product that takes ``compute`` seconds in all.

    The next block waits for strips of the last one, unless they leave as fast as they are finished.
    """
    strip = shape.tile[0] * shape.block[0] * shape.tile[1]
    rate = p.flops / compute if compute else math.inf
    finish = (8.0 if p.dtype.kind == "c" else 2.0) * strip * shape.drain * shape.tile[2] / rate
    spare = max(0, shape.slots[2] // shape.block[0] - shape.block[1])
    return max(0.0, _home_seconds(p, shape, rates) - finish) * max(0, shape.block[1] - spare)


def predict(plan: MatmulPlan, rates: Rates) -> MatmulPlan:
    """The plan with its bytes, its seconds on a machine of these rates, and the memory of its slots filled in."""
    p = plan.problem
    es = p.dtype.itemsize
    disk_es = p.disk_itemsize or (es, es, es)
    loaded_a, loaded_b, read_a, read_b = _traffic(plan)
    c = p.m * p.n
    if p.rank_k:  # tiles that the diagonal crosses are whole
        tile = plan.tile[0]
        whole, rest = divmod(p.n, tile)
        c = tile * tile * (whole * (whole + 1) // 2) + rest * p.n
    c_in = c if p.reads_c else 0
    upload = download = 0.0
    if plan.unified:
        disk_read = (0 if p.slotless[0] else loaded_a * disk_es[0]) + (0 if p.slotless[1] else loaded_b * disk_es[1])
        disk_read += 0 if p.slotless[2] else c_in * disk_es[2]
        disk_write = 0 if p.slotless[2] else c * disk_es[2]
    else:
        upload, download = (loaded_a + loaded_b + c_in) * es, float(c * es)
        disk_read = (0 if p.hostless[0] else read_a * disk_es[0]) + (0 if p.hostless[1] else read_b * disk_es[1])
        disk_read += 0 if p.hostless[2] else c_in * disk_es[2]
        disk_write = 0 if p.hostless[2] else c * disk_es[2]
    compute = plan.tasks * (rates.compute(p.flops / max(plan.tasks, 1)))
    # Tiles of arrays in pinned memory are strided there; such copies run slower than those of whole host slots.
    strided = [STRIDED_COPY if here else 1.0 for here in p.hostless]
    up = (loaded_a / strided[0] + loaded_b / strided[1] + c_in / strided[2]) * es / rates.upload
    down = c * es / strided[2] / rates.download
    stages = [
        ("compute", compute),
        ("upload", 0.0 if plan.unified else up),
        ("download", 0.0 if plan.unified else down),
        ("disk", rates.stores(disk_read, disk_write)),
    ]
    seconds = max(plan.tasks * rates.submit, *(s for _, s in stages))
    seconds += ends_seconds(p, plan, rates, disk_read > 0, disk_write > 0, unified=plan.unified)
    if not plan.unified:
        seconds += max(0, plan.host_slots * plan.host_slot_bytes - _STAGING) / rates.pin
        passes = plan.blocks[0] * plan.blocks[1] * (0.5 if p.rank_k else 1)
        seconds += max(0, passes - 1) * turn_seconds(p, plan, compute, rates)
    tile_m, tile_n, tile_k = plan.tile
    sizes = (tile_m * tile_k, tile_k * tile_n, tile_m * tile_n)
    device = sum(
        round_up(size * es, 4096) * slots for size, slots, free in zip(sizes, plan.slots, p.slotless, strict=True) if not free
    )
    return replace(
        plan,
        upload=round(upload),
        download=round(download),
        disk_read=round(disk_read),
        disk_write=round(disk_write),
        seconds=seconds,
        stages=tuple(stages),
        device_bytes=device,
        host_bytes=plan.host_slots * plan.host_slot_bytes,
    )
