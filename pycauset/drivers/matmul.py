"""MatmulDriver: ``C = alpha op(A) op(B) + beta C`` on matrices larger than memory.

Mathematics: with A cut into A_ik, B into B_kj and C into C_ij, ``C_ij = beta C_ij + alpha Σ_k op(A)_ik op(B)_kj``.

Order: outer products over resident blocks of C, in serpentine order (Goto and van de Geijn's "panel-panel" shape one
level further out); see :mod:`pycauset.drivers.matmul_plan` for the plan and its bytes. When B is op(A)ᵀ or op(A)ᴴ only
the lower triangle of tiles is computed (SYRK, HERK): half the work, half the storage.

Bytes moved: ``2mnk/b`` elements of A and B for blocks of side b, each element of C once (twice if ``beta`` ≠ 0).

References
----------
.. [1] K. Goto and R. A. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_plan import MatmulLimits, MatmulPlan, MatmulProblem, plan_matmul
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.errors import MemoryLimitError
from pycauset.hardware import cpu_info
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, round_up

__all__ = ["MatmulDriver"]

_A, _B, _C = 0, 1, 2


class MatmulDriver:
    """The state machine of one product.

    Parameters
    ----------
    a, b, c : TileStore
        ``op_a(a)`` is (m, k), ``op_b(b)`` (k, n), ``c`` (m, n).
    dtype : dtype
        What kernels compute in; tiles are converted on their way in and out.
    alpha, beta : scalar
        With ``beta = 0``, ``c`` is not read.
    op_a, op_b : {"N", "T", "H"}
        As stored, transposed, conjugate transposed.
    rank_k : bool
        ``op_b(b)`` is the (conjugate) transpose of ``op_a(a)``, the same store; only C's lower triangle is computed.
    """

    def __init__(
        self,
        a: TileStore,
        b: TileStore,
        c: TileStore,
        dtype: np.dtype[Any],
        *,
        alpha: complex = 1.0,
        beta: complex = 0.0,
        op_a: str = "N",
        op_b: str = "N",
        rank_k: bool = False,
    ) -> None:
        self.stores: Sequence[TileStore] = (a, b, c)
        self.dtype = np.dtype(dtype)
        self.alpha, self.beta = alpha, beta
        self.op_a, self.op_b = op_a, op_b
        self.rank_k = rank_k
        m, k = a.shape if op_a == "N" else a.shape[::-1]
        n = c.shape[1]
        self.sizes = (m, n, k)

    def problem(self, device: Device, *, whole: bool = True) -> MatmulProblem:
        """What the planner needs to know about the operands on this device.

        ``whole``: tiles are to be whole chunks also where one chunk spans an axis and its parts cost as much as all of it.
        """
        m, n, k = self.sizes
        unified = device.unified
        reached = tuple(device.reaches(store, self.dtype) for store in self.stores)
        none = (False, False, False)
        disk = tuple(0.125 if store.dtype.kind == "b" else float(store.dtype.itemsize) for store in self.stores)
        return MatmulProblem(
            m,
            n,
            k,
            self.dtype,
            units=self._units(reached, whole),
            slotless=(reached[0], reached[1], reached[2]) if unified else none,
            hostless=(reached[0], reached[1], reached[2]) if not unified else none,
            disk_itemsize=(disk[0], disk[1], disk[2]),
            # One chunk wide and several tall is contiguous as stored; with a transposed A tiles are wide instead.
            a_stacks=self.op_a == "N",
            rank_k=self.rank_k,
            reads_c=self.beta != 0,
            grain=tuple(None if has_no_chunks(s) else self._grain(i) for i, s in enumerate(self.stores)),
        )

    def _grain(self, operand: int) -> tuple[int, int]:
        """The chunk of an operand as ``op`` sees it."""
        h, w = self.stores[operand].chunks
        return (w, h) if operand < 2 and (self.op_a, self.op_b)[operand] != "N" else (h, w)

    def _units(self, reached: Sequence[bool], whole: bool) -> tuple[int, int, int]:
        """Multiples for tile sides: whole chunks of C first (it is written), then of A and B as far as they agree."""
        c = self.stores[2]
        reached = [free or has_no_chunks(store) for free, store in zip(reached, self.stores, strict=True)]
        (ah, aw), (bh, bw) = self._grain(0), self._grain(1)
        m, n, k = self.sizes

        a_whole, b_whole = (whole and store.whole_chunks for store in self.stores[:2])

        def agree(size: int, *sides: tuple[int, bool, bool]) -> int:
            unit = 1
            for side, free, spans in sides:
                if not free and (side < size or spans):
                    side = max(1, min(side, size))
                    unit = max(unit, side) if unit % side == 0 or side % unit == 0 else unit
            return unit

        return (
            agree(m, (c.chunks[0], reached[2], False), (ah, reached[0], a_whole)),
            agree(n, (c.chunks[1], reached[2], False), (bw, reached[1], b_whole)),
            agree(k, (aw, reached[0], a_whole), (bh, reached[1], b_whole)),
        )

    def plan(self, device: Device, limits: MatmulLimits, rates: Rates) -> MatmulPlan:
        """Choose tiles, block and order; MemoryLimitError with the numbers when nothing fits."""
        piece = self.piece_bytes(device)
        try:
            return plan_matmul(self.problem(device), limits, rates, unified=device.unified, piece=piece)
        except MemoryLimitError:
            if not any(store.whole_chunks for store in self.stores[:2]):
                raise
            return plan_matmul(self.problem(device, whole=False), limits, rates, unified=device.unified, piece=piece)

    def piece_bytes(self, device: Device) -> int:
        """Bytes of the largest piece that travels between a store and a host slot."""
        largest = 4096
        for store in self.stores:
            if not device.reaches(store, self.dtype):
                size = min(store.chunks[0], store.shape[0]) * min(store.chunks[1], store.shape[1]) * self.dtype.itemsize
                if has_no_chunks(store):  # any size will do: large enough for long rows, small enough for several threads
                    size = min(max(store.nbytes // 64, 256 << 10), 16 << 20)
                largest = max(largest, min(size, 32 << 20))
        return round_up(largest, 4096)

    def readers(self, device: Device) -> int:
        """Threads that fetch tiles: two keep a disk busy; staging arrays in RAM for a GPU scales with the cores."""
        cores = cpu_info().cores
        staging = any(has_no_chunks(s) and not device.reaches(s, self.dtype) for s in self.stores[:2])
        return max(2, min(8, cores // 2)) if staging or cores >= 8 else 2

    def writers(self, device: Device) -> int:
        """Threads that write tiles."""
        return max(1, min(4, cpu_info().cores // 4))

    def operands(self, plan: MatmulPlan) -> list[Operand]:
        """A, B and C as the streamer takes them."""
        tile_m, tile_n, tile_k = plan.tile
        m, n, k = self.sizes
        tm, tn, tk = min(tile_m, m), min(tile_n, n), min(tile_k, k)
        tile_a = (tm, tk) if self.op_a == "N" else (tk, tm)
        tile_b = (tk, tn) if self.op_b == "N" else (tn, tk)
        shapes = (tile_a, tile_b, (tm, tn))
        return [
            Operand(store, self.dtype, shape, slots, name)
            for store, shape, slots, name in zip(self.stores, shapes, plan.slots, ("A", "B", "C"), strict=True)
        ]

    def tasks(self, plan: MatmulPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        m, n, k = self.sizes
        tile_m, tile_n, tile_k = plan.tile
        rows, cols, steps = plan.grid
        down, across = plan.block
        if k == 0:
            yield from self._scale(plan)
            return
        row = [(i * tile_m, min((i + 1) * tile_m, m)) for i in range(rows)]
        col = [(j * tile_n, min((j + 1) * tile_n, n)) for j in range(cols)]
        step = [(s * tile_k, min((s + 1) * tile_k, k)) for s in range(steps)]
        passes = list(plan.passes())
        for number, (block_i, block_j) in enumerate(passes):
            following = passes[number + 1] if number + 1 < len(passes) else None
            ascending = number % 2 == 0
            order = list(range(steps)) if ascending else list(range(steps - 1, -1, -1))
            diagonal = self.rank_k and block_i == block_j
            same_row = following is not None and following[0] == block_i
            same_col = (
                following is not None
                and following[1] == block_j
                and not (self.rank_k and following[0] == following[1])
                and not diagonal
            )
            across_passes = plan.blocks[1]
            here = number % across_passes if not self.rank_k else 0  # which pass of its row of blocks
            i_range = range(block_i * down, min((block_i + 1) * down, rows))
            j_range = range(block_j * across, min((block_j + 1) * across, cols))
            tile_a = {(i, s): self._tile(_A, row[i], step[s], self.op_a) for i in i_range for s in order}
            tile_b = {} if diagonal else {(s, j): self._tile(_B, step[s], col[j], self.op_b) for j in j_range for s in order}
            tile_c = {(i, j): Tile(_C, *row[i], *col[j]) for i in i_range for j in j_range if not self.rank_k or i >= j}
            left = {s: len(order) - 1 - index for index, s in enumerate(order)}  # steps still to come in this pass
            keep_a = {s: same_row and left[s] < plan.keep_a for s in order}
            keep_b = {s: same_col and left[s] < plan.keep_b for s in order}
            # What the host level need not keep behind the device: all that is not read again before it would be evicted.
            host_a = {s: same_row and (plan.host_keep_a >= steps or plan.keep_a <= left[s] < plan.host_keep_a) for s in order}
            to_turn = {s: left[s] + steps * (across_passes - 1 - here) for s in order}
            more_rows = not self.rank_k and block_i < plan.blocks[0] - 1
            total = steps * across_passes
            host_b = {s: more_rows and (plan.host_keep_b >= total or plan.keep_b <= to_turn[s] < plan.host_keep_b) for s in order}
            main, last_steps = order[: steps - plan.drain], order[steps - plan.drain :]
            visits = [(s, j) for s in main for j in j_range] + [(s, j) for j in j_range for s in last_steps]
            final_j = {s: j_range[-1] for s in order}
            for s, j in visits:
                for i in i_range:
                    if self.rank_k and i < j:
                        continue
                    c = tile_c[i, j]
                    first, last = s == order[0], s == order[-1]
                    a = tile_a[i, s]
                    beta = self.beta if first else 1.0
                    drop: list[Tile] = [c] if last else []
                    forget: list[Tile] = [c] if beta != 0 and first else []
                    if not host_a[s]:
                        forget.append(a)
                    if diagonal:
                        # Tile j of the panel has served as row and as column once column j is finished in this step.
                        if i == i_range[-1] and not keep_a[s]:
                            drop.append(tile_a[j, s])
                        yield self._diagonal_task(c, a, tile_a[j, s], i == j, beta, last, tuple(drop), tuple(forget))
                        continue
                    b = tile_b[s, j]
                    if j == final_j[s] and not keep_a[s]:
                        drop.append(a)
                    if i == i_range[-1] and not keep_b[s]:
                        drop.append(b)
                    if not host_b[s]:
                        forget.append(b)
                    yield TileTask(
                        "gemm",
                        (a, b) if beta == 0 else (a, b, c),
                        (c,),
                        (self.alpha, beta, self.op_a, self.op_b),
                        self._flops(c, step[s]),
                        tuple(drop),
                        tuple(forget),
                    )

    def _diagonal_task(
        self,
        c: Tile,
        a: Tile,
        other: Tile,
        diagonal: bool,
        beta: complex,
        last: bool,
        drop: tuple[Tile, ...],
        forget: tuple[Tile, ...],
    ) -> TileTask:
        depth = (a.c0, a.c1) if self.op_a == "N" else (a.r0, a.r1)
        if diagonal:
            hermitian = "H" in (self.op_a, self.op_b)
            return TileTask(
                "rank_k",
                (a,) if beta == 0 else (a, c),
                (c,),
                (self.alpha, beta, self.op_a, hermitian, last),
                self._flops(c, depth) / 2,
                drop,
                forget,
            )
        if a in forget:
            forget = (*forget, other)
        return TileTask(
            "gemm",
            (a, other) if beta == 0 else (a, other, c),
            (c,),
            (self.alpha, beta, self.op_a, self.op_b),
            self._flops(c, depth),
            drop,
            forget,
        )

    def _scale(self, plan: MatmulPlan) -> Iterator[TileTask]:
        """An empty sum: C = beta C."""
        m, n, _ = self.sizes
        for i in range(0, m, plan.tile[0]):
            for j in range(0, i + 1 if self.rank_k else n, plan.tile[1]):
                c = Tile(_C, i, min(i + plan.tile[0], m), j, min(j + plan.tile[1], n))
                yield TileTask("scale", (c,) if self.beta != 0 else (), (c,), (self.beta,), 0.0, (c,))

    def _flops(self, c: Tile, depth: tuple[int, int]) -> float:
        return (8.0 if self.dtype.kind == "c" else 2.0) * (c.r1 - c.r0) * (c.c1 - c.c0) * (depth[1] - depth[0])

    def _tile(self, operand: int, rows: tuple[int, int], cols: tuple[int, int], op: str) -> Tile:
        rect = Rect(*rows, *cols) if op == "N" else Rect(*cols, *rows)
        return Tile(operand, *rect)
