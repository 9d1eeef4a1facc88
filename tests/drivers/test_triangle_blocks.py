"""Triangle blocks: every tile once, the rows counted in closed form, and never more memory than there is."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.drivers.triangle_blocks import Layout, blocks, layout, loads


def rows_of(pairs: list[tuple[int, int]]) -> set[int]:
    return {row for pair in pairs for row in pair}


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 260), capacity=st.integers(3, 260), first=st.integers(0, 40))
def test_every_pair_exactly_once(count: int, capacity: int, first: int) -> None:
    found = [pair for block in blocks(layout(count, capacity, first), capacity) for pair in block]
    last = first + count
    assert len(found) == len(set(found)) == count * (count + 1) // 2
    assert all(first <= j <= i < last for i, j in found)


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 260),
    capacity=st.integers(3, 260),
    first=st.integers(0, 40),
    size=st.integers(1, 9),
    short=st.integers(1, 9),
)
def test_loads_count_what_the_blocks_name(count: int, capacity: int, first: int, size: int, short: int) -> None:
    chosen = layout(count, capacity, first)
    seen = [rows_of(block) for block in blocks(chosen, capacity)]
    assert loads(chosen, capacity) == sum(map(len, seen))
    last = first + count - 1
    expected = sum(short if row == last else size for rows in seen for row in rows)
    assert loads(chosen, capacity, size, short) == expected


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 300), capacity=st.integers(3, 260))
def test_a_block_fits_while_rows_stream_past(count: int, capacity: int) -> None:
    """Resident tiles and the rows of one step: all rows of a triangle block, those of one column at a time in a square."""
    chosen = layout(count, capacity)
    for block in blocks(chosen, capacity):
        rows = rows_of(block)
        columns, below = {j for _, j in block}, {i for i, _ in block}
        triangle = len(block) == len(rows) * (len(rows) - 1) // 2 and len(rows) > 2
        streaming = len(rows) if triangle else min(len(columns), len(below)) + 1
        assert len(block) + streaming <= capacity


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 500), capacity=st.integers(3, 260))
def test_the_layout_is_never_worse_than_squares(count: int, capacity: int) -> None:
    chosen = layout(count, capacity)
    squares = Layout(0, count, 0, 0, chosen.side)
    assert loads(chosen, capacity) <= loads(squares, capacity)
    if chosen.rows:
        assert chosen.rows * chosen.group <= count
        assert all(math.gcd(chosen.group, factor) == 1 for factor in range(2, chosen.rows))


@pytest.mark.parametrize("capacity", [54, 110, 236])
def test_two_rows_far_apart_meet_once(capacity: int) -> None:
    """What the construction promises: rows of different groups occur together in exactly one triangle block."""
    chosen = next(c for c in (layout(count, capacity) for count in range(40, 900)) if c.rows)
    together: dict[tuple[int, int], int] = {}
    for block in itertools.islice(blocks(chosen, capacity), chosen.group**2):
        for pair in itertools.combinations(sorted(rows_of(block)), 2):
            together[pair] = together.get(pair, 0) + 1
    assert set(together.values()) == {1}
    within = chosen.rows * math.comb(chosen.group, 2)
    assert len(together) == math.comb(chosen.rows * chosen.group, 2) - within


def test_bytes_approach_the_bound() -> None:
    """``count²/√(2 capacity)`` rows at least; squares need √2 times as many, triangles come near."""
    capacity = 236
    ratios = [loads(layout(count, capacity), capacity) / (count**2 / math.sqrt(2 * capacity)) for count in (800, 3000, 12_000)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1.10
    assert min(ratios) > 1
