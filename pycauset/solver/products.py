"""Products of one matrix with many blocks of vectors, for iterations: by BLAS in RAM, or streamed; A is never copied.

Each object counts its passes over A, and looks for NaN and infinity in what comes out: they cannot hide in a product.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.blas import adjoint_product, hemv, product
from pycauset.drivers.block_product import LOOKAHEAD, BlockProductDriver
from pycauset.drivers.slots import temporary_bytes
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import NonFiniteError
from pycauset.governor import Scope
from pycauset.solver.run import Limits, record_statistics
from pycauset.storage import ArrayStore, TileStore
from pycauset.tiling import Rect

__all__ = ["ArrayProduct", "CalledProduct", "Product", "ResidentProduct", "StreamedProduct", "blame", "blame_resident", "drive"]

Array = np.ndarray[Any, Any]

_BAND_BYTES: Final = 32 << 20


class Product(abc.ABC):
    """``Y = A X``, or ``Aᴴ A X`` with ``gram``, for blocks X (n, p).

    Attributes
    ----------
    passes : int
        Passes over A so far.
    columns : int
        Vectors multiplied so far.
    forward : ndarray or None
        With ``gram``: ``A X`` of the last product.
    """

    passes = 0
    columns = 0
    forward: Array | None = None
    _told: Callable[[float], object] | None = None
    #: Whether it takes and gives blocks in GPU memory.
    resident = False

    def __call__(self, x: Any) -> Any:
        """The product, a fresh array or one that the next call overwrites.

        Raises
        ------
        NonFiniteError
            If NaN or infinity comes out; names the tile of A that has it.
        """
        self.passes += 1
        self.columns += x.shape[1]
        self.forward = None  # the last one goes before the next comes
        with np.errstate(invalid="ignore", over="ignore"):  # an error follows, with the tile's name
            y = self._multiply(x)
        if not np.isfinite(y).all():
            self._blame(x)
        return y

    @abc.abstractmethod
    def _multiply(self, x: Any) -> Any:
        """The product itself."""

    def _blame(self, x: Array) -> None:
        raise NonFiniteError(
            "a product of the matrix with a finite block holds NaN or infinity: the matrix has some, or overflows"
        )

    def report_to(self, told: Callable[[float], object] | None) -> None:
        """Tell a function which share of a pass is done, while it goes on: above 0, at most 1. Only products that stream do."""
        self._told = told

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CalledProduct(Product):
    """By a function, for operators and sparse matrices."""

    def __init__(
        self, call: Callable[[Array], Array], dtype: np.dtype[Any], forward: Callable[[Array], Array] | None = None
    ) -> None:
        self._call, self._dtype, self._forward = call, dtype, forward

    def _multiply(self, x: Array) -> Array:
        if self._forward is not None:
            self.forward = np.asarray(self._forward(x))
            return np.asarray(self._call(self.forward), self._dtype)
        return np.asarray(self._call(x), self._dtype)


class ArrayProduct(Product):
    """By BLAS on an array in RAM: ``hemv`` or ``symv`` for one vector and a Hermitian matrix, else ``gemm``."""

    def __init__(self, a: Array, dtype: np.dtype[Any], *, hermitian: bool = False, gram: bool = False) -> None:
        self._a, self._dtype, self._gram = a, dtype, gram
        self._half = hermitian and a.dtype == dtype and a.flags.c_contiguous and len(a) > 256

    def _multiply(self, x: Array) -> Array:
        a = self._a
        if self._gram:
            return self._gram_product(x)
        if self._half and x.shape[1] == 1:
            y = np.empty((len(a), 1), self._dtype)
            hemv(a, np.ascontiguousarray(x[:, 0], self._dtype), y[:, 0])
            return y
        return self._bands(x)

    def _bands(self, x: Array) -> Array:
        a = self._a
        if a.dtype == self._dtype:
            return product(a, x)
        y = np.empty((a.shape[0], x.shape[1]), self._dtype)
        step = max(1, _BAND_BYTES // max(1, a.shape[1] * self._dtype.itemsize))
        for r in range(0, a.shape[0], step):
            y[r : r + step] = product(a[r : r + step].astype(self._dtype), x)
        return y

    def _gram_product(self, x: Array) -> Array:
        a, x = self._a, np.ascontiguousarray(x)
        z = np.zeros((a.shape[1], x.shape[1]), self._dtype)
        forward = np.empty((a.shape[0], x.shape[1]), self._dtype)
        step = max(1, (4 << 20) // max(1, a.shape[1] * self._dtype.itemsize))
        for r in range(0, a.shape[0], step):
            band = np.asarray(a[r : r + step], self._dtype)
            part = forward[r : r + step] = product(band, x)
            z += adjoint_product(band, part)
        self.forward = forward
        return z

    def _blame(self, x: Array) -> None:
        blame(ArrayStore(self._a), self._tiles())

    def _tiles(self) -> list[Rect]:
        m, n = self._a.shape
        return [Rect(r, min(r + 1024, m), c, min(c + 1024, n)) for r in range(0, m, 1024) for c in range(0, n, 1024)]


class ResidentProduct(Product):
    """With a matrix in GPU memory, by an array module with NumPy's interface; blocks in RAM come back in RAM.

    Parameters
    ----------
    a : array (m, n)
        Of the module.
    xp : module
        CuPy; NumPy serves as a stand-in.
    gram : {"", "tall", "wide"}
        Products with ``Aᴴ A``, or with ``A Aᴴ``.
    scope : Scope
        Grants memory for a copy if A has another element type.
    """

    resident = True

    def __init__(self, a: Any, xp: Any, dtype: np.dtype[Any], *, gram: str = "", scope: Scope) -> None:
        with ExitStack() as stack:
            if a.dtype != dtype:
                nbytes = int(a.size) * dtype.itemsize
                stack.enter_context(scope.require("device", nbytes, owner=f"the {a.dtype} matrix as {dtype}"))
                a = a.astype(dtype)
            self._stack = stack.pop_all()
        self._a, self._xp, self._gram = a, xp, gram
        self._home = getattr(xp, "asnumpy", np.asarray)

    def close(self) -> None:
        self._stack.close()

    def __call__(self, x: Any) -> Any:
        """The product; of a block in GPU memory who makes it orthonormal finds out whether it is finite, without a wait here."""
        if isinstance(x, np.ndarray):
            return super().__call__(x)
        self.passes += 1
        self.columns += x.shape[1]
        return self._multiply(x)

    def _multiply(self, x: Any) -> Any:
        at_home = isinstance(x, np.ndarray)
        x = self._xp.asarray(x)
        y = self._adjoint(x) if self._gram == "wide" else self._a @ x
        if self._gram:
            self.forward = self._home(y) if at_home else None
            y = self._a @ y if self._gram == "wide" else self._adjoint(y)
        return self._home(y) if at_home else y

    def _adjoint(self, x: Any) -> Any:
        """``Aᴴ x``, without a conjugate copy of A."""
        return (self._a.T @ x.conj()).conj()

    def _blame(self, x: Any) -> None:
        self.blame()
        super()._blame(x)

    def blame(self) -> None:
        """Find the element that is NaN or infinity.

        Raises
        ------
        NonFiniteError
        """
        blame_resident(self._a, self._xp)


class StreamedProduct(Product):
    """Through the streamer, which stays open between passes: what memory holds of A serves the next one.

    Parameters
    ----------
    where : Device
    a : TileStore
    width : int
        Most columns of a block.
    op : {"N", "T", "H", "C"}
        How A is taken; "C" conjugates.
    mirror : str, optional
        One of `MIRRORS`.
    gram : bool
    limits : Limits
        What is left beside all that the caller takes.
    scope : Scope
        Grants memory.
    """

    def __init__(
        self,
        where: Device,
        a: TileStore,
        dtype: np.dtype[Any],
        width: int,
        *,
        op: str = "N",
        mirror: str | None = None,
        gram: bool = False,
        limits: Limits,
        scope: Scope,
    ) -> None:
        self._conjugate = op == "C" or (gram and op == "T" and dtype.kind == "c")
        op = {"C": "N", "T": "H"}[op] if self._conjugate else op
        m, n = a.shape if op == "N" else a.shape[::-1]
        shapes = [(n, width), (m, width)] + [(n, width)] * gram
        self._stack = ExitStack()
        nbytes = sum(s[0] * s[1] for s in shapes) * dtype.itemsize
        self._stack.callback(scope.require("host", nbytes, owner="blocks of vectors").release)
        self._blocks = [np.zeros(shape, dtype) for shape in shapes]
        stores = [ArrayStore(block) for block in self._blocks]
        self.driver = BlockProductDriver(a, stores[0], stores[1], dtype, op=op, mirror=mirror, z=stores[2] if gram else None)
        left = limits.host - nbytes
        readers, writers = self.driver.readers(where), self.driver.writers(where)
        try:
            room, temporary = left, 0
            while True:
                plan = self.driver.plan(where, room if where.unified else limits.device, room)
                temporary = temporary_bytes(where, self.driver.operands(plan), readers, writers)
                if not temporary or room + temporary <= left:
                    break
                room = left - temporary if temporary < room // 2 else room // 2  # smaller tiles take smaller temporaries
        except BaseException:
            self._stack.close()
            raise
        self.plan = plan
        self._gram = gram
        self._flops = m * n * (8.0 if dtype.kind == "c" else 2.0) * (2 if gram else 1)  # of a pass with one vector, at most
        self._streamer = AsyncStreamer(
            where,
            self.driver.operands(plan),
            scope,
            host_slots=plan.host_slots,
            host_slot_bytes=plan.host_slot_bytes,
            readers=readers,
            writers=writers,
            lookahead=None if gram else LOOKAHEAD,
        )
        try:
            self._stack.enter_context(self._streamer)
        except BaseException:
            self._stack.close()
            raise

    def _multiply(self, x: Array) -> Array:
        columns = x.shape[1]
        np.copyto(self._blocks[0][:, :columns], x.conj() if self._conjugate else x)
        begun = self._streamer.statistics().flops
        self._streamer.on_progress = self._reporter(begun, self._flops * columns)
        try:
            for task in self.driver.tasks(self.plan, columns, backwards=self.passes % 2 == 0):
                self._streamer.submit(task)
            self._streamer.flush()
        finally:
            self._streamer.on_progress = None
        self._flops = (self._streamer.statistics().flops - begun) / columns  # exact: tiles of zeros take none
        self.forward = self._blocks[1][:, :columns] if self._gram else None
        y = self._blocks[2 if self._gram else 1][:, :columns]
        if self._conjugate:
            self.forward = self.forward.conj() if self.forward is not None else None
            y = y.conj()
        return y

    def _reporter(self, begun: float, expected: float) -> Callable[[float], None] | None:
        """Turn operations since the first pass into the share of this one."""
        told = self._told
        if told is None:
            return None

        def report(flops: float) -> None:
            if flops > begun:
                told(min(1.0, (flops - begun) / expected))

        return report

    def _blame(self, x: Array) -> None:
        blame(self.driver.stores[0], self.driver.first_unfit(self.plan))

    def close(self) -> None:
        record_statistics(self._streamer.statistics())
        self._stack.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._stack.__exit__(kind, error, trace)


def blame(store: TileStore, tiles: Any) -> None:
    """Find the tile that holds NaN or infinity.

    Raises
    ------
    NonFiniteError
        Always: also if no tile does, when the product overflows.
    """
    for rect in tiles:
        tile = np.empty(rect.shape, store.dtype)
        store.read(rect, tile)
        bad = np.argwhere(~np.isfinite(tile))
        if len(bad):
            i, j = (int(v) for v in bad[0])
            raise NonFiniteError(
                f"tile [{rect.r0}:{rect.r1}, {rect.c0}:{rect.c1}] of {store!r} holds {tile[i, j]} at row {rect.r0 + i}, column "
                f"{rect.c0 + j}; eigenvalues and singular values need a finite matrix"
            )
    raise NonFiniteError(f"a product with {store!r} overflows {store.dtype}; scale the matrix, or convert it to a wider type")


def blame_resident(a: Any, xp: Any) -> None:
    """Find the element of an array in GPU memory that is NaN or infinity, if there is one.

    Raises
    ------
    NonFiniteError
    """
    finite = xp.isfinite(a)
    if not finite.all():
        i, j = (int(v) for v in np.unravel_index(int(xp.argmin(finite)), a.shape))
        raise NonFiniteError(
            f"the array in GPU memory holds {a[i, j]} at row {i}, column {j}; eigenvalues and singular values need a finite "
            "matrix"
        )


def drive(machine: Any, product: Callable[[Array], Array]) -> Any:
    """Run a generator that asks for products, ``y = yield x``; returns what it returns."""
    try:
        x = next(machine)
        while True:
            x = machine.send(product(x))
    except StopIteration as end:
        return end.value
