"""Sizes of a block Krylov computation: how wide a block is, how large the basis grows. Pure, no memory is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycauset.errors import ConfigError
from pycauset.tiling import ceil_div

__all__ = ["ArnoldiPlan", "plan_arnoldi"]


@dataclass(frozen=True, slots=True)
class ArnoldiPlan:
    """Sizes of one computation.

    Attributes
    ----------
    n, k : int
        Order of the matrix, eigenpairs wanted.
    block : int
        Columns that each pass over A advances.
    ncv : int
        Columns of the basis when it is restarted, at most.
    basis_bytes : int
        Of the basis, with the block that stands at its end.
    look : int
        Passes from one test of convergence to the next.
    """

    n: int
    k: int
    block: int
    ncv: int
    basis_bytes: int
    look: int = 1


def plan_arnoldi(
    n: int,
    k: int,
    dtype: np.dtype[Any],
    *,
    passes_cost: bool,
    resident: bool = False,
    interior: bool = False,
    block: int | None = None,
    ncv: int | None = None,
    room: int | None = None,
    start: int = 1,
) -> ArnoldiPlan:
    """Choose the width of the block and the size of the basis.

    Where reading A is what a pass costs (``passes_cost``: it lies on disk, or behind PCIe) wide blocks and a large basis save
    passes.
    In RAM the bytes of A stream through the cores in either case, and a block of one needs the fewest products. In a GPU's memory
    wide blocks cost no more than narrow ones, but a pass is so short that eigenvalues of a large projected matrix, which the host
    finds, would take longer.

    Parameters
    ----------
    resident : bool
        A lies in GPU memory.
    interior : bool
        Eigenvalues inside the spectrum are wanted, which only a large basis tells apart.
    block, ncv : int, optional
        Chosen by the caller. The basis is never larger than ``ncv``: the block is as narrow as that asks for.
    room : int, optional
        Bytes that the basis may take.
    start : int
        Columns that there are to start from: a block that is not chosen by the caller takes them all.

    Raises
    ------
    ConfigError
        If ``ncv`` is not larger than k, or the block takes fewer columns than there are to start from.

    Examples
    --------
    >>> plan_arnoldi(12288, 8, np.dtype(float), passes_cost=True)
    ArnoldiPlan(n=12288, k=8, block=16, ncv=320, basis_bytes=33030144, look=1)
    >>> plan_arnoldi(12288, 8, np.dtype(float), passes_cost=False).block
    1
    >>> plan_arnoldi(12288, 6, np.dtype(float), passes_cost=True, ncv=20).block
    2
    """
    if ncv is not None and ncv <= k < n:
        raise ConfigError(f"a basis of ncv={ncv} columns is too small for k={k} pairs; ncv must be at least {k + 1}")
    passes_cost = passes_cost or resident
    if block is None:
        narrow = 1 if n > 4000 else min(4, k + 1)
        block = min(32, max(16, ceil_div(k, 8) * 8), max(narrow, n // 8)) if passes_cost else narrow
        if ncv is not None:
            block = min(block, (ncv - k) // 6)  # a few steps from one restart to the next
        block = max(block, start)
    block = max(1, min(block, n))
    if ncv is not None:
        block = max(1, min(block, ncv - k))
    if block < min(start, n):
        raise ConfigError(f"{start} columns to start from are more than a block of {block} takes; raise block_size or ncv")
    if ncv is None:
        ncv = max((10 if resident else 20) * block, 3 * k + 2 * block) if passes_cost else max(2 * k + 4 * block, 40)
        if interior:
            ncv = max(ncv, 300)
        if room is not None:
            ncv = min(ncv, room // (n * dtype.itemsize) - block)
        ncv = max(ncv, k + 2 * block, k + 3)
    ncv = min(ncv, n)
    look = 5 if resident else max(1, 8 // block)
    return ArnoldiPlan(n, k, block, ncv, n * (ncv + block) * dtype.itemsize, look)
