"""Where the basis of an iteration lies, and how large it may be.

In GPU memory if products are computed there and a share of it suffices; else in RAM if it fits, else on disk, smaller if
neither has room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pycauset import devices
from pycauset.devices.base import Device
from pycauset.drivers.arnoldi_plan import ArnoldiPlan, plan_arnoldi
from pycauset.drivers.basis import ArrayBasis, Basis, DeviceBasis
from pycauset.drivers.spilled import SpilledBasis, plan_spill
from pycauset.errors import MemoryLimitError, StoreError
from pycauset.governor import Scope
from pycauset.solver.products import Product
from pycauset.solver.run import Limits

__all__ = ["Placed", "Sizes", "place"]

#: Of the room, the share that a basis in RAM may take; the rest is for vectors and tiles.
_SHARE: Final = 2
#: The same of GPU memory, where each tile that stays saves its way through the link in every pass.
_DEVICE_SHARE: Final = 8
#: Blocks of vectors that are there at once while one is made orthonormal.
_BLOCKS: Final = 8
#: The workspace of the array module's own BLAS handle, which the limits of a device do not count.
_HANDLE: Final = 32 << 20
#: A basis on disk costs sweeps with each step: narrower blocks than this would make many of them.
_NARROWEST_ON_DISK: Final = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked for: order, pairs, element type, ``columns`` multiplied at once at the end, and what the caller chose.

    ``gpu`` is the device that products are computed on, if it has memory of its own, ``resident`` says that A is there, and
    ``start`` how many columns there are to start from.
    """

    name: str
    n: int
    k: int
    dtype: np.dtype[Any]
    columns: int
    passes_cost: bool
    interior: bool
    block: int | None
    ncv: int | None
    gpu: Device | None = None
    resident: bool = False
    start: int = 1


@dataclass(frozen=True, slots=True)
class Placed:
    """A basis with the product beside it, both open."""

    plan: ArnoldiPlan
    basis: Basis
    product: Product


def place(sizes: Sizes, open_product: Callable[[int, Limits], Product], limits: Limits, scope: Scope, stack: ExitStack) -> Placed:
    """Take the first of the candidates that memory and disk have room for; all of it is given back with ``stack``.

    Parameters
    ----------
    open_product : callable
        ``open_product(width, left)`` gives the product with blocks of up to ``width`` vectors, within the limits left.

    Raises
    ------
    MemoryLimitError, StoreFullError
        If there is none; the numbers are those of the smallest.
    """
    refused: MemoryLimitError | StoreError | None = None
    for plan, where in _candidates(sizes, limits):
        with ExitStack() as attempt:
            try:
                placed = _try(sizes, plan, where, open_product, limits, scope, attempt)
            except (MemoryLimitError, StoreError) as error:
                if isinstance(error, StoreError) and where != "disk":
                    raise  # of the matrix itself
                refused = error
                continue
            stack.push(attempt.pop_all())
            return placed
    assert refused is not None
    raise refused


def _candidates(sizes: Sizes, limits: Limits) -> Iterator[tuple[ArnoldiPlan, str]]:
    """Plans in the order in which they are tried, and where the basis lies: "gpu", "ram" or "disk"."""

    def plan(block: int | None, bytes_: int | None = None, ncv: int | None = None) -> ArnoldiPlan:
        return plan_arnoldi(
            sizes.n,
            sizes.k,
            sizes.dtype,
            passes_cost=sizes.passes_cost,
            resident=sizes.resident,
            interior=sizes.interior,
            block=block,
            ncv=ncv or sizes.ncv,
            room=bytes_,
            start=sizes.start,
        )

    whole = plan(sizes.block)
    if sizes.gpu is not None:
        room = limits.device // (_SHARE if sizes.resident else _DEVICE_SHARE)
        there = plan(sizes.block, room)
        if _device_bytes(sizes, there) <= room and 2 * there.ncv >= whole.ncv:
            yield there, "gpu"
    fitting = plan(sizes.block, limits.host // _SHARE)
    # Restarting a basis of half the size costs less than sweeping the whole one on disk.
    if sizes.ncv is not None or 2 * fitting.ncv >= whole.ncv:
        yield fitting, "ram"
    wide = sizes.block or max(sizes.start, min(max(whole.block, _NARROWEST_ON_DISK), max(1, sizes.n // 8)))
    yield plan(wide), "disk"
    if sizes.ncv is None:
        yield fitting, "ram"
        for block in dict.fromkeys([wide, *([] if sizes.block else [max(sizes.start, wide // 4), sizes.start])]):
            least = sizes.k + 4 * block
            yield plan(block, ncv=least), "ram"
            yield plan(block, ncv=least), "disk"


def _device_bytes(sizes: Sizes, plan: ArnoldiPlan) -> int:
    """A basis in GPU memory, the blocks beside it, and what the array module takes."""
    return plan.basis_bytes + _BLOCKS * plan.n * max(plan.block, sizes.columns) * sizes.dtype.itemsize + _HANDLE


def _try(
    sizes: Sizes,
    plan: ArnoldiPlan,
    where: str,
    open_product: Callable[[int, Limits], Product],
    limits: Limits,
    scope: Scope,
    stack: ExitStack,
) -> Placed:
    dtype, n = sizes.dtype, plan.n
    width = max(plan.block, sizes.columns)
    vectors = 4 * n * width * dtype.itemsize
    owner = f"{sizes.name}: a basis of {plan.ncv} + {plan.block} vectors of {n}"
    if where == "gpu":
        assert sizes.gpu is not None
        nbytes = _device_bytes(sizes, plan)
        stack.enter_context(scope.require("host", vectors, owner=owner))
        stack.enter_context(scope.require("device", nbytes - plan.basis_bytes, owner=owner))
        slab = sizes.gpu.device_slab(plan.basis_bytes, scope, owner)
        stack.callback(slab.release)
        xp, v = sizes.gpu.array(slab, (plan.ncv + plan.block, n), dtype)
        product = stack.enter_context(open_product(width, limits.less(vectors, nbytes)))
        room = (nbytes - plan.basis_bytes - _HANDLE) // 2  # half of the blocks are there while the basis is rotated
        return Placed(plan, stack.enter_context(DeviceBasis(v.T, xp, room)), product)
    if where == "ram":
        stack.enter_context(scope.require("host", plan.basis_bytes + vectors, owner=owner))
        product = stack.enter_context(open_product(width, limits.less(plan.basis_bytes + vectors)))
        return Placed(plan, ArrayBasis(np.zeros((plan.ncv + plan.block, n), dtype).T), product)
    from pycauset.storage.scratch import scratch_store

    stack.enter_context(scope.require("host", vectors, owner=f"{sizes.name}: blocks of {width} vectors of {n}"))
    # Tiles of the basis get half of what is left, those of the matrix the other half.
    spill = plan_spill(plan, dtype, width, (limits.host - vectors) // 2)
    product = stack.enter_context(open_product(width, limits.less(vectors + spill.fixed_bytes + spill.slot_bytes)))

    def make(shape: tuple[int, int], chunks: tuple[int, int]) -> Any:
        return scratch_store(shape, dtype, chunks=chunks)

    basis = stack.enter_context(SpilledBasis(spill, n, dtype, width, devices.cpu(), scope, make))
    return Placed(replace(plan, basis_bytes=spill.fixed_bytes + spill.slot_bytes), basis, product)
