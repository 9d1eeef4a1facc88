"""Drafts of a product's plan: which blocks fit, about what they cost, and what is worth keeping. Pure arithmetic.

:mod:`pycauset.drivers.matmul_plan` sifts these drafts and has the best of them predicted exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_cost import STRIDED_COPY, ends_seconds, turn_seconds
from pycauset.tiling import ceil_div, round_up

if TYPE_CHECKING:
    from pycauset.drivers.matmul_plan import MatmulPlan, MatmulProblem

__all__ = ["Shape", "fit", "heights", "host_level", "keep", "rough"]


def heights(p: MatmulProblem, around: float) -> list[int]:
    """Heights of blocks to try: few blocks, a neighbourhood of the best guess, and one chunk, where memory is scarce.

    Around the best guess the bytes depend on the square of the distance from it: a coarse net loses nothing.
    """
    most = ceil_div(p.m, p.units[0])
    low, high = int(around * 0.75), int(around * 1.35) + 2
    counts = [*range(1, min(25, int(2 * around) + 7)), *range(low, high, max(1, (high - low) // 48)), most]
    every = sorted({round_up(ceil_div(p.m, count), p.units[0]) for count in counts if 1 <= count <= most})
    net = every[:1]
    for height in every:
        near = 0.85 < height * around / p.m < 1.15
        if height >= (1.02 if near else 1.06) * net[-1] or height == every[-1]:
            net.append(height)
    return net


class Shape(NamedTuple):
    """Tiles and a block of them, with slots for streaming, and the device bytes that these leave."""

    tile: tuple[int, int, int]
    block: tuple[int, int]
    drain: int
    slots: tuple[int, int, int]
    slot: tuple[int, int, int]
    free: int


def fit(problem: MatmulProblem, limit: int, unified: bool, tile: tuple[int, int, int], height: int, drain: int) -> Shape | None:
    """The widest block of about ``height`` rows, or None when nothing fits."""
    p, es = problem, problem.dtype.itemsize
    tile_m, tile_n, tile_k = tile
    down = ceil_div(height, tile_m)
    steps = ceil_div(p.k, tile_k)
    drain = max(1, min(steps, drain))
    slot_a = 0 if p.slotless[0] else round_up(tile_m * tile_k * es, 4096)
    slot_b = 0 if p.slotless[1] else round_up(tile_k * tile_n * es, 4096)
    slot_c = 0 if p.slotless[2] else round_up(tile_m * tile_n * es, 4096)

    def stream_slots(rows: int) -> tuple[int, int]:
        """Slots of A beside what a step needs, and of C beside the block: what is on its way in or out."""
        return rows * drain + (min(rows, 3) if steps > drain else 0), (2 if rows == 1 and not unified else min(rows, 3))

    a_slots, spare = stream_slots(down)
    left = limit - a_slots * slot_a - spare * slot_c - 2 * slot_b
    per_column = down * slot_c + slot_b  # a strip of C and its tile of B
    if left < per_column or left < 0:
        return None
    columns = ceil_div(p.n, tile_n)
    across = min(columns, left // per_column) if per_column else columns
    across = ceil_div(columns, ceil_div(columns, across))  # blocks of even width
    if p.rank_k:
        across = down = min(across, down)
        a_slots, spare = stream_slots(down)
    if across * tile_n >= p.n and down * tile_m >= p.m:
        spare = 0  # one block: nothing follows it
    slots = (a_slots, across + 2, down * across + spare)
    free = limit - slots[0] * slot_a - slots[1] * slot_b - slots[2] * slot_c
    return Shape(tile, (down, across), drain, slots, (slot_a, slot_b, slot_c), free)


def rough(p: MatmulProblem, shape: Shape, rates: Rates, unified: bool) -> tuple[float, float]:
    """Bytes over the device's link and seconds, nearly: what :func:`predict` says, without what the host level keeps."""
    (tile_m, tile_n, tile_k), (down, across) = shape.tile, shape.block
    rows, cols, steps = ceil_div(p.m, tile_m), ceil_div(p.n, tile_n), ceil_div(p.k, tile_k)
    blocks_down, blocks_across = ceil_div(rows, down), ceil_div(cols, across)
    half = 0.5 if p.rank_k else 1.0
    # What keep will do with the free bytes: hold on to panels of A, or of B where there is one block across.
    stack, row = down * shape.slot[0], across * shape.slot[1]
    kept_a = min(1.0, (shape.free // stack + shape.drain) / max(steps, 1)) if stack else 1.0
    kept_b = (1.0 if not row or shape.free // row >= steps else shape.free // row / steps) if blocks_across == 1 else 0.0
    a = p.m * p.k * (1 + (blocks_across - 1) * half * (1 - kept_a))
    b = p.n * p.k * ((blocks_down - 1) * half * (1 - kept_b) + (0 if p.rank_k else 1))
    c, c_in = p.m * p.n * half, p.m * p.n * half * p.reads_c
    tasks = rows * cols * steps * half
    compute = tasks * max(rates.compute(p.flops / max(tasks, 1)), rates.submit)
    es = p.dtype.itemsize

    def stored(free: tuple[bool, bool, bool]) -> tuple[float, float]:
        """Bytes read and written."""
        return (a * (not free[0]) + b * (not free[1]) + c_in * (not free[2])) * es, c * es * (not free[2])

    read, written = stored(p.slotless if unified else p.hostless)
    seconds = max(compute, rates.stores(read, written))
    if unified:
        return read + written, seconds + ends_seconds(p, shape, rates, read > 0, written > 0, unified=True)
    slow = [es / (STRIDED_COPY if here else 1.0) for here in p.hostless]
    seconds = max(seconds, (a * slow[0] + b * slow[1] + c_in * slow[2]) / rates.upload, c * slow[2] / rates.download)
    passes = blocks_down * blocks_across * half
    seconds += max(0, passes - 1) * turn_seconds(p, shape, compute, rates)
    return (a + b + c_in + c) * es, seconds + ends_seconds(p, shape, rates, read > 0, written > 0)


def keep(plan: MatmulPlan, free: int, slot: tuple[int, int, int]) -> MatmulPlan:
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


def host_level(plan: MatmulPlan, limit: int, piece: int, rates: Rates) -> MatmulPlan | None:
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
    if device >= steps:
        return 0  # the device has no need to ask again
    if fits >= steps:
        return steps
    return max(0, min(fits, steps - device - 1)) if fits > device else 0
