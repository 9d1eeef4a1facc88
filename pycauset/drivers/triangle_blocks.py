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


@functools.lru_cache(maxsize=256)
def layout(count: int, capacity: int, first: int = 0) -> Layout:
    """The layout of ``count`` rows with the fewest tiles of A per step, for ``capacity`` tiles in fast memory.

    A square block of side s takes s² + s + 1 tiles: the block, the rows of A in use, and one that meets them. A triangle block
    of r rows takes r(r-1)/2 + r.

    Examples
    --------
    >>> layout(10, 60)
    Layout(first=0, last=10, rows=0, group=0, side=7)
    >>> layout(143, 60).rows
    9
    """
    side = max(1, (math.isqrt(4 * capacity - 3) - 1) // 2)
    best = Layout(first, first + count, 0, 0, side)
    fewest = loads(best, capacity)
    most = (math.isqrt(8 * capacity + 1) - 1) // 2
    for rows in range(most, 2, -1):
        group = _group(count, rows)
        if group:
            triangles = Layout(first, first + count, rows, group, side)
            moved = loads(triangles, capacity)
            if moved < fewest:
                best, fewest = triangles, moved
    return best


def _group(count: int, rows: int) -> int:
    """The largest group size for blocks of so many rows: coprime to 2 … rows - 1 and at least that; 0 if there is none."""
    for group in range(count // rows, rows - 2, -1):
        if all(math.gcd(group, factor) == 1 for factor in range(2, rows)):
            return group
    return 0


def loads(chosen: Layout, capacity: int, sizes: Sequence[int] | None = None) -> int:
    """Rows of A to load in one step over all blocks (times the depth: elements of A); each row counts its ``sizes`` entry, or 1.

    Examples
    --------
    >>> chosen = layout(143, 60)
    >>> loads(chosen, 60) == sum(len({x for pair in block for x in pair}) for block in blocks(chosen, 60))
    True
    """

    def extent(first: int, last: int) -> int:
        return last - first if sizes is None else sum(sizes[first:last])

    first, last, rows, group, side = chosen
    if not rows:
        # Row block i meets every row block at or below its own once, except that the diagonal block needs its rows once.
        blocked = -(-(last - first) // side)
        return blocked * extent(first, last)
    total = group * extent(first, first + rows * group)  # each row is in one block for every row of another group
    for u in range(rows):
        total += loads(layout(group, capacity, first + u * group), capacity, sizes)
    start = first + rows * group
    for i in range(start, last, side):
        stop = min(i + side, last)
        width = -(-(start - first) // side) + (i - start) // side + 1
        total += extent(first, stop) + (width - 1) * extent(i, stop)
    return total


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
