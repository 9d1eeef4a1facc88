"""What a plan of a product costs: bytes over each link, and seconds, in closed form.

The counts follow the cache planner exactly (tests compare them), without walking through the tasks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pycauset.devices.rates import Rates
from pycauset.tiling import ceil_div, round_up

if TYPE_CHECKING:
    from pycauset.drivers.matmul_plan import MatmulPlan

__all__ = ["predict"]

#: Rate of 2-D copies between a tile and a larger pinned array, to that of contiguous ones (benchmarks/results, H200).
_STRIDED_COPY = 0.6
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


def _rows_of(size: int, tile: int, block: int, index: int) -> int:
    """Rows (or columns) in block ``index`` of ``block`` tiles each."""
    side = tile * block
    return min(size - index * side, side)


def _traffic(plan: MatmulPlan) -> tuple[float, float, float, float]:
    """Elements of A and B loaded to the device, and of A and B read from the store."""
    p = plan.problem
    if not p.k:
        return 0.0, 0.0, 0.0, 0.0
    if p.rank_k:
        return _traffic_rank_k(plan)
    major, minor = plan.blocks
    major_size, minor_size = (p.m, plan.tile[0], plan.block[0]), (p.n, plan.tile[1], plan.block[1])
    keep_major, keep_minor = plan.keep_a, plan.keep_b
    host_major, host_minor = plan.host_keep_a, plan.host_keep_b
    k, tile_k = p.k, plan.tile[2]
    steps = ceil_div(k, tile_k)
    # The panel of the outer index is used in every pass of its row: loaded in the first, topped up in the others.
    loaded_major = read_major = 0.0
    for i in range(major):
        rows = _rows_of(*major_size, i)
        later = minor - 1
        first = i * minor + 1  # passes are numbered; even ones ascend
        ascending = (later + (first + 1) % 2) // 2
        descending = later - ascending
        for skip, kind in ((keep_major, "load"), (max(keep_major, host_major), "read")):
            width = k + ascending * _steps_width(k, tile_k, skip, True) + descending * _steps_width(k, tile_k, skip, False)
            if kind == "load":
                loaded_major += rows * width
            else:
                read_major += rows * width
    # The panel of the inner index is shared at the turn from one row of blocks to the next.
    total = minor_size[0] * k
    loaded_minor = read_minor = float(total)
    for i in range(1, major):
        start = i * minor
        turn = 0 if i % 2 == 0 else minor - 1
        width = _rows_of(*minor_size, turn)
        loaded_minor += total - width * (k - _steps_width(k, tile_k, keep_minor, start % 2 == 0))
        remaining = max(keep_minor, host_minor)
        saved = 0.0
        for offset in range(ceil_div(min(remaining, steps * minor), steps)):
            j = offset if i % 2 == 0 else minor - 1 - offset
            skip = min(steps, remaining - offset * steps)
            saved += _rows_of(*minor_size, j) * (k - _steps_width(k, tile_k, skip, (start + offset) % 2 == 0))
        read_minor += total - saved
    return loaded_major, loaded_minor, read_major, read_minor


def _traffic_rank_k(plan: MatmulPlan) -> tuple[float, float, float, float]:
    """As :func:`_traffic`, for the lower triangle of blocks: pass by pass (their number is small)."""
    p = plan.problem
    k, tile_k = p.k, plan.tile[2]
    size = (p.n, plan.tile[0], plan.block[0])
    loaded_a = loaded_b = read_a = 0.0
    before: tuple[int, int] | None = None
    for number, (i, j) in enumerate(plan.passes()):
        ascending = number % 2 == 0
        same_row = before is not None and before[0] == i
        loaded_a += _rows_of(*size, i) * _steps_width(k, tile_k, plan.keep_a if same_row else 0, ascending)
        read_a += _rows_of(*size, i) * _steps_width(k, tile_k, max(plan.keep_a, plan.host_keep_a) if same_row else 0, ascending)
        if i != j:
            same_column = before is not None and before[1] == j and before[0] != before[1]
            loaded_b += _rows_of(*size, j) * _steps_width(k, tile_k, plan.keep_b if same_column else 0, ascending)
        before = (i, j)
    return loaded_a, loaded_b, read_a, loaded_b


# -- seconds -----------------------------------------------------------------------------------------------------------


def predict(plan: MatmulPlan, rates: Rates) -> MatmulPlan:
    """The plan with its bytes, its seconds on a machine of these rates, and the memory of its slots filled in."""
    p = plan.problem
    es = p.dtype.itemsize
    disk_es = p.disk_itemsize or (es, es, es)
    loaded_a, loaded_b, read_a, read_b = _traffic(plan)
    c = p.m * p.n
    if p.rank_k:  # tiles that the diagonal crosses are whole
        rows, tile = plan.grid[0], plan.tile[0]
        c = sum(min(tile, p.n - i * tile) * min(p.n, (i + 1) * tile) for i in range(rows))
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
    strided = [_STRIDED_COPY if here else 1.0 for here in p.hostless]
    up = (loaded_a / strided[0] + loaded_b / strided[1] + c_in / strided[2]) * es / rates.upload
    down = c * es / strided[2] / rates.download
    stages = [
        ("compute", compute),
        ("upload", 0.0 if plan.unified else up),
        ("download", 0.0 if plan.unified else down),
        ("disk", disk_read / rates.read + disk_write / rates.write),
    ]
    seconds = max(s for _, s in stages)
    # Filling: the first tiles of A and B have to arrive before anything runs. Draining: the last strip goes home alone.
    first = (plan.tile[0] + plan.tile[1]) * min(plan.tile[2], p.k) * es
    strip = plan.tile[0] * plan.block[0] * plan.tile[1] * es
    if plan.unified:
        seconds += (first / rates.read if disk_read else 0) + (strip / plan.block[0] / rates.write if disk_write else 0)
    else:
        home = strip / strided[2] / rates.download
        seconds += first / min(strided[:2]) / rates.upload + home
        seconds += (first / rates.read if disk_read else 0) + (strip / rates.write if disk_write else 0)
        seconds += max(0, plan.host_slots * plan.host_slot_bytes - _STAGING) / rates.pin
        # Between passes the next block waits for strips of the last one, unless they leave as fast as they are finished.
        rate = p.flops / compute if compute else math.inf
        finish = (8.0 if p.dtype.kind == "c" else 2.0) * (strip / es) * plan.drain * plan.tile[2] / rate
        spare = max(0, plan.slots[2] // plan.block[0] - plan.block[1])
        wait = max(0.0, home - finish) * max(0, plan.block[1] - spare)
        seconds += wait * (plan.blocks[0] * plan.blocks[1] - 1) * (0.5 if p.rank_k else 1)
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
