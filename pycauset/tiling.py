"""Geometry of tiles: rectangles, grids and the orders in which blocks are visited. Pure integers, no I/O.

A *rectangle* is half-open in both directions, like a pair of Python slices. A *chunk* is the unit in which a store
keeps its elements; a *tile* is what a kernel works on. The two need not be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Rect", "ceil_div", "chunk_grid", "cut", "pieces", "round_up", "serpentine", "split_evenly"]


class Rect(NamedTuple):
    """Rows ``r0:r1`` and columns ``c0:c1`` of a matrix."""

    r0: int
    r1: int
    c0: int
    c1: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.r1 - self.r0, self.c1 - self.c0

    @property
    def size(self) -> int:
        return (self.r1 - self.r0) * (self.c1 - self.c0)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.r0, self.r1), slice(self.c0, self.c1)

    @property
    def T(self) -> Rect:  # NumPy's name
        """The same elements in the transposed matrix."""
        return Rect(self.c0, self.c1, self.r0, self.r1)

    def shift(self, rows: int, cols: int) -> Rect:
        return Rect(self.r0 + rows, self.r1 + rows, self.c0 + cols, self.c1 + cols)

    def intersect(self, other: Rect) -> Rect | None:
        """The common elements, or None when there are none."""
        r0, r1 = max(self.r0, other.r0), min(self.r1, other.r1)
        c0, c1 = max(self.c0, other.c0), min(self.c1, other.c1)
        return Rect(r0, r1, c0, c1) if r0 < r1 and c0 < c1 else None


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``a``."""
    return ceil_div(a, multiple) * multiple


def chunk_grid(shape: tuple[int, int], chunks: tuple[int, int]) -> tuple[int, int]:
    """How many chunks there are along each axis (edge chunks included)."""
    return ceil_div(shape[0], chunks[0]), ceil_div(shape[1], chunks[1])


def pieces(rect: Rect, chunks: tuple[int, int]) -> Iterator[tuple[int, int, Rect]]:
    """Cut a rectangle along chunk borders: ``(chunk row, chunk column, part of rect)`` in row-major order."""
    h, w = chunks
    for i in range(rect.r0 // h, ceil_div(rect.r1, h)):
        r0, r1 = max(rect.r0, i * h), min(rect.r1, (i + 1) * h)
        for j in range(rect.c0 // w, ceil_div(rect.c1, w)):
            yield i, j, Rect(r0, r1, max(rect.c0, j * w), min(rect.c1, (j + 1) * w))


def cut(rect: Rect, chunks: tuple[int, int] | None, itemsize: int, limit: int) -> list[Rect]:
    """Cut a rectangle along chunk borders (if there are any), then by rows until no part has more than ``limit`` bytes."""
    parts: list[Rect] = []
    for part in [rect] if chunks is None else [p for _, _, p in pieces(rect, chunks)]:
        rows, cols = part.shape
        step = max(1, limit // max(1, cols * itemsize))
        if step >= rows:
            parts.append(part)
        else:
            parts += [Rect(r, min(r + step, part.r1), part.c0, part.c1) for r in range(part.r0, part.r1, step)]
    return parts


def split_evenly(n: int, parts: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut ``range(n)`` into at most ``parts`` ranges of nearly equal length, each start a multiple of ``multiple``."""
    step = round_up(ceil_div(n, parts), multiple)
    return [(i, min(i + step, n)) for i in range(0, n, step)]


def serpentine(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Row by row, every second row backwards, so that neighbours in the order always share a row or a column."""
    for i in range(rows):
        for j in range(cols) if i % 2 == 0 else range(cols - 1, -1, -1):
            yield i, j
