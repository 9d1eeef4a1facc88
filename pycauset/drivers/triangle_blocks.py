"""Which tiles of a symmetric update stay resident together: triangle blocks, which need √2 times fewer bytes than squares.

The update is ``C -= A Aᵀ`` (or ``C = A Aᵀ``) on the lower triangle of T × T tiles. A block is a set of tiles of C that are
resident while A streams past; in each step it needs one tile of A for every row that occurs in it. An s × s square needs 2s
tiles of A for s² of C. A *triangle block* is made of r rows, far apart, and all r(r-1)/2 tiles that pair two of them: r tiles
of A for r²/2 of C, hence √2 fewer for the same memory.

Beaumont et al. lay the whole triangle out in such blocks: T = r·c rows in r groups of c; block (p, q), 0 ≤ p, q < c, takes from
group u the row ``u·c + (p + q·u) mod c``. If c is coprime to every number from 2 to r - 1, then every pair of rows from two
groups occurs in exactly one block. The c × c triangles within the groups are
laid out the same way again, or in squares; a few rows that are left over in squares.

References
----------
.. [1] O. Beaumont, L. Eyraud-Dubois, M. Vérité and J. Langou, "I/O-optimal algorithms for symmetric linear algebra kernels",
   SPAA 2022, arXiv:2202.10217 (algorithm TBS).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Layout", "blocks", "layout", "loads"]

Pairs = list[tuple[int, int]]


class Layout(NamedTuple):
    """How rows ``first:last`` of a symmetric update are laid out.

    ``rows`` is r, the rows of a triangle block, 0 for squares of side ``side``. With triangles the first ``rows * group`` rows
    form groups of ``group``; the rows that are left over come after them.
    """

    first: int
    last: int
    rows: int
    group: int
    side: int


def squares(first: int, last: int, side: int) -> Iterator[Pairs]:
    """Square blocks of tiles (and triangles on the diagonal) over the lower triangle of rows ``first:last``."""
    for i in range(first, last, side):
        for j in range(first, i + 1, side):
            yield _rectangle(range(i, min(i + side, last)), range(j, min(j + side, last)))


def _rectangle(rows: Sequence[int], cols: Sequence[int]) -> Pairs:
    return [(i, j) for j in cols for i in rows if i >= j]


def layout(count: int, capacity: int, first: int = 0) -> Layout:
    """The layout of ``count`` rows with the fewest tiles of A per step, for ``capacity`` tiles in fast memory.

    A square block of side s takes s² + s + 1 tiles: the block, the rows of A in use, and one that meets them. A triangle block
    of r rows takes r(r-1)/2 + r.

    Examples
    --------
    >>> layout(10, 60)
    Layout(first=0, last=10, rows=0, group=0, side=7)
    >>> layout(143, 60).rows
    10
    """
    rows, group, side = _best(count, capacity)
    return Layout(first, first + count, rows, group, side)


@functools.lru_cache(maxsize=4096)
def _best(count: int, capacity: int) -> tuple[int, int, int]:
    """Rows, group and side of the layout, wherever it begins."""
    side = max(1, (math.isqrt(4 * capacity - 3) - 1) // 2)
    best = (0, 0, side)
    fewest = _loads(count, *best, capacity)
    most = (math.isqrt(8 * capacity + 1) - 1) // 2
    for rows in range(most, 2, -1):
        if rows * (rows - 1) > count:
            continue
        group = _group(count, rows)
        if group:
            moved = _loads(count, rows, group, side, capacity)
            if moved < fewest:
                best, fewest = (rows, group, side), moved
    return best


@functools.lru_cache(maxsize=4096)
def _group(count: int, rows: int) -> int:
    """The largest group size for blocks of so many rows: coprime to 2 … rows - 1 and at least that; 0 if there is none."""
    product = math.prod(_primes(rows))
    for group in range(count // rows, rows - 2, -1):
        if math.gcd(group, product) == 1:
            return group
    return 0


@functools.lru_cache(maxsize=256)
def _primes(below: int) -> tuple[int, ...]:
    return tuple(p for p in range(2, below) if all(p % q for q in range(2, math.isqrt(p) + 1)))


def loads(chosen: Layout, capacity: int, size: int = 1, last_size: int | None = None) -> int:
    """Rows of A to load in one step over all blocks (times the depth: elements of A).

    Each tile row counts ``size``, the last one ``last_size``, if that is given.

    Examples
    --------
    >>> chosen = layout(143, 60)
    >>> loads(chosen, 60) == sum(len({x for pair in block for x in pair}) for block in blocks(chosen, 60))
    True
    """
    first, last, rows, group, side = chosen
    total = size * _loads(last - first, rows, group, side, capacity)
    if last_size is not None and last > first:
        total -= (size - last_size) * _visits(last - first, rows, group, side, capacity)
    return total


@functools.lru_cache(maxsize=4096)
def _loads(count: int, rows: int, group: int, side: int, capacity: int) -> int:
    """Tile rows to load over all blocks of a layout."""
    if not rows:
        # Row block i meets every row block at or below its own once, except that the diagonal block needs its rows once.
        return -(-count // side) * count
    start = rows * group
    total = group * start  # each row is in one block for every row of another group
    total += rows * _loads(group, *_best(group, capacity), capacity)
    for i in range(start, count, side):
        stop = min(i + side, count)
        total += stop + (_strip(start, i, side) - 1) * (stop - i)
    return total


def _visits(count: int, rows: int, group: int, side: int, capacity: int) -> int:
    """Blocks of a layout in which its last row occurs."""
    if not rows:
        return -(-count // side)
    start = rows * group
    if start < count:
        return _strip(start, start + (count - 1 - start) // side * side, side)
    return group + _visits(group, *_best(group, capacity), capacity)


def _strip(start: int, i: int, side: int) -> int:
    """Square blocks from the left to the diagonal in a strip of rows from ``i`` on, beside triangles of ``start`` rows."""
    return -(-start // side) + (i - start) // side + 1


def blocks(chosen: Layout, capacity: int) -> Iterator[Pairs]:
    """The blocks of a layout, each as its tiles (i, j) of C, column by column."""
    first, last, rows, group, side = chosen
    if not rows:
        yield from squares(first, last, side)
        return
    for p in range(group):
        for q in range(group):
            members = [first + u * group + (p + q * u) % group for u in range(rows)]
            yield [(i, j) for at, j in enumerate(members) for i in members[at + 1 :]]
    for u in range(rows):
        yield from blocks(layout(group, capacity, first + u * group), capacity)
    start = first + rows * group
    for i in range(start, last, side):
        below = range(i, min(i + side, last))
        for j in range(first, start, side):
            yield _rectangle(below, range(j, min(j + side, start)))
        for j in range(start, i + 1, side):
            yield _rectangle(below, range(j, min(j + side, last)))
