"""What every tile store promises: a two-dimensional array read and written by rectangles.

``read`` and ``write`` here check shapes and element types once, for all stores; a store itself implements ``_read`` and
``_write`` and may rely on those checks. All sizes are in bytes.
"""

from __future__ import annotations

import abc
import errno
import itertools
import math
import os
import threading
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import (
    DtypeError,
    ShapeError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StorePermissionError,
)
from pycauset.tiling import Rect

__all__ = ["MIRRORED", "STRUCTURES", "TileJournal", "TileStore", "default_chunks", "element_type", "place", "store_error"]

STRUCTURES: Final = ("full", "lower", "upper", "symmetric", "hermitian", "skew")
MIRRORED: Final = ("symmetric", "hermitian", "skew")
"""Structures that keep the lower triangle only and compute the upper one from it."""

_SUPPORTED: Final = frozenset(
    {"bool", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_BAND: Final = 16  # source rows per step of a transposed copy: keeps a band in the first-level cache (2x NumPy's own order)

Footprint = tuple[str, float, float]
"""Where a store's bytes lie: ``("", first, last)`` for addresses, ``(real path, first, last)`` for a file or folder."""


def element_type(dtype: DTypeLike, what: str) -> np.dtype[Any]:
    """The native-endian element type of ``what``, if matrices can have it.

    Raises
    ------
    DtypeError
        If it is an object, text, date, record or extended-precision type.

    Examples
    --------
    >>> element_type(">f4", "a matrix")
    dtype('float32')
    """
    try:
        native = np.dtype(dtype).newbyteorder("=")
    except TypeError as error:
        raise DtypeError(f"{what} has element type {dtype!r}, which is no NumPy type: {error}") from None
    if native.name not in _SUPPORTED:
        raise DtypeError(
            f"{what} has element type {np.dtype(dtype)}; matrices hold bool, integers, float16/32/64 or complex64/128: "
            "convert it with .astype(...) first"
        )
    return native


def default_chunks(shape: tuple[int, int], dtype: DTypeLike) -> tuple[int, int]:
    """The chunk that a new store gets: square, 8 to 16 MiB, a power of two on each side; a small matrix is one chunk.

    A side shorter than the chunk clips it, and the other side then grows to keep the bytes: a column of 10⁶ float64 is one chunk.

    Examples
    --------
    >>> default_chunks((20_000, 20_000), "float64"), default_chunks((300, 200), "float64")
    ((1024, 1024), (300, 200))
    >>> default_chunks((20_000, 20_000), "float32"), default_chunks((3_000_000, 1), "float64")
    ((2048, 2048), (1048576, 1))
    """
    native = element_type(dtype, "a matrix")
    side = 8192 if native.kind == "b" else 1024 if native.itemsize >= 8 else 2048
    height, width = max(1, min(shape[0], side)), max(1, min(shape[1], side))
    if height < side <= shape[1]:
        width = min(shape[1], max(side, side * side // height // side * side))
    elif width < side <= shape[0]:
        height = min(shape[0], max(side, side * side // width // side * side))
    return height, width


def stored_chunk(structure: str, i: int, j: int, chunks: tuple[int, int]) -> bool:
    """Whether chunk ``(i, j)`` of a store with this structure is kept on disk (chunks that the diagonal crosses are)."""
    if structure == "full":
        return True
    if structure == "upper":
        return (j + 1) * chunks[1] > i * chunks[0]
    return (i + 1) * chunks[0] > j * chunks[1]


def check_structure(structure: str, shape: tuple[int, int], chunks: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """Refuse a structure that this shape, chunk or element type cannot have."""
    if structure not in STRUCTURES:
        raise ShapeError(f"structure is {structure!r}; it must be one of {', '.join(STRUCTURES)}")
    if structure in MIRRORED and (shape[0] != shape[1] or chunks[0] != chunks[1]):
        raise ShapeError(f"a {structure} matrix of shape {shape} in chunks {chunks}: both must be square")
    if structure == "skew" and dtype.kind in "bu":
        raise DtypeError(f"a skew-symmetric matrix cannot hold {dtype}, which has no negative numbers; use a signed type")


def place(dest: NDArray[Any], source: NDArray[Any], how: str = "full") -> None:
    """Copy ``source`` into ``dest``, cast as needed; for a mirrored structure, its transpose (conjugated or negated)."""
    if how == "full":
        np.copyto(dest, source, casting="same_kind")
        return
    for start in range(0, source.shape[0], _BAND):
        part, band = dest[:, start : start + _BAND], source[start : start + _BAND].T
        np.copyto(part, band, casting="same_kind")
        if how == "hermitian" and source.dtype.kind == "c":  # in place, while the band is in the cache
            np.conjugate(part, out=part)
        elif how == "skew":  # not np.negative: NumPy 2.4 gets it wrong for some strides of both operands (8 float64, 4 float32)
            np.subtract(0, part, out=part)


def cast_unsafe(dest: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy with any cast that :meth:`TileStore.write` allows; NumPy warns of what overflows or is NaN in an integer."""
    np.copyto(dest, source, casting="unsafe")


def store_error(error: OSError, doing: str) -> StoreError:
    """The typed error for what the operating system reported while ``doing`` (``"writing /a/b"``)."""
    number = error.errno or 0
    reason = os.strerror(number) if number else str(error)
    kind: type[StoreError] = StoreError
    remedy = ""
    if number in (errno.ENOENT, errno.ENOTDIR):
        kind, remedy = StoreNotFoundError, "; was it moved or deleted while in use?"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind, remedy = StorePermissionError, "; choose a folder that this user can write, or change its permissions"
    elif number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        kind, remedy = StoreFullError, "; free some space or choose another file system"
    typed = kind(f"{doing} failed: {reason}{remedy}")
    typed.errno = error.errno
    return typed


class SharedState:
    """What all stores of one path in this process share: the generation, and locks for partial chunks."""

    __slots__ = ("__weakref__", "generation", "incarnation", "locks", "signature")

    def __init__(self, signature: Hashable) -> None:
        self.signature = signature
        self.generation = next(_generations)
        self.incarnation = 0
        self.locks = tuple(threading.Lock() for _ in range(64))

    def bump(self) -> None:
        self.generation = next(_generations)

    def replaced(self) -> int:
        """Note that this process has put another matrix in the path's place; its incarnation, by which older stores know."""
        self.bump()
        self.incarnation += 1
        return self.incarnation


_generations: Final = itertools.count(1)
_states: Final[WeakValueDictionary[str, SharedState]] = WeakValueDictionary()
_states_lock: Final = threading.Lock()


def shared_state(path: str, signature: Hashable) -> SharedState:
    """The state of ``path``; a changed ``signature`` (another process wrote there) counts as a write."""
    with _states_lock:
        state = _states.get(path)
        if state is None:
            state = _states[path] = SharedState(signature)
        elif state.signature != signature:
            state.signature = signature
            state.bump()
        return state


def file_signature(path: str) -> Hashable:
    """Changes whenever the file is replaced or rewritten by anybody."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class TileStore(abc.ABC):
    """A matrix somewhere: in RAM, on disk, behind another library, or computed.

    Attributes
    ----------
    shape : (int, int)
    dtype : numpy.dtype
        Logical element type, native-endian.
    chunks : (int, int)
        The rectangle that the store handles best.
    whole_chunks : bool
        Whether reading a part of a chunk costs as much as the whole one: it has to be decoded.
    structure : str
        ``"full"``; ``"lower"`` or ``"upper"`` (the other triangle is zero and not stored); ``"symmetric"``,
        ``"hermitian"`` or ``"skew"`` (the lower triangle's chunks are stored, the others are computed from them).
        Chunks that the diagonal crosses are stored and returned as they were written.
    path : pathlib.Path or None
    writable : bool
    identity : tuple
        Equal for two stores exactly when they hold the same data.
    attributes : dict
        What :meth:`commit` was given (properties and the like); empty for foreign arrays.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int]
    structure: str = "full"
    path: Path | None = None
    writable: bool = False
    whole_chunks: bool = False
    identity: tuple[Hashable, ...]
    attributes: dict[str, Any]

    @property
    def generation(self) -> int | None:
        """Changes with every write; ``None`` if that cannot be known."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, whether stored or not."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, rect: Rect, out: NDArray[Any]) -> None:
        """Fill ``out`` with the elements of ``rect``. Any number of threads may read at once.

        Parameters
        ----------
        rect : Rect
        out : ndarray (rows of rect, columns of rect)
            Any strides; any element type that NumPy's "same_kind" rule allows. With whole chunks, the store's own
            type, contiguous rows and an address that is a multiple of 4096 bytes, a native store reads straight into it.

        Raises
        ------
        ShapeError, DtypeError
            If rect lies outside the matrix, or ``out`` does not fit.
        StoreNotFoundError, CorruptTileError, StorePermissionError, StoreError
            If the data have vanished, are damaged, or cannot be read.
        """
        self._check(rect, out, "out")
        if not np.can_cast(self.dtype, out.dtype, "same_kind"):
            raise DtypeError(f"{self} cannot be read as {out.dtype}: that would lose its imaginary part or its fractions")
        if not out.flags.writeable:
            raise StorePermissionError(f"reading {self}: the array to fill is read-only")
        if out.size:
            if self.is_zero(rect):
                out[...] = 0
            else:
                self._read(rect, out)

    def write(self, rect: Rect, data: NDArray[Any]) -> None:
        """Store ``data`` as the elements of ``rect``. Threads may write disjoint chunks at once.

        The elements are cast as by ``astype`` (fractions are cut off for integer stores). In a store that keeps one
        triangle, what ``data`` holds for the other one is believed to be what the structure says, and dropped.

        Parameters
        ----------
        rect : Rect
            Whole chunks (clipped at the matrix's edge) replace each chunk atomically; part of a chunk is read, changed
            and written back under a lock.
        data : ndarray (rows of rect, columns of rect)

        Raises
        ------
        ShapeError, DtypeError
            If the shapes differ, rect lies wholly in a triangle that is not stored, or complex data meet a real store.
        StoreFullError, StorePermissionError, StoreError
            If the store is read-only, finished (call :meth:`begin_write` first) or the file system refuses.
        """
        self._check(rect, data, "data")
        if not self.writable:
            raise StorePermissionError(f"{self} is read-only")
        element_type(data.dtype, "data")
        if data.dtype.kind == "c" and self.dtype.kind != "c":
            raise DtypeError(f"{data.dtype} data cannot be written to {self}: the imaginary part would be lost; take .real first")
        if data.size:
            self._write(rect, data)

    def _check(self, rect: Rect, array: NDArray[Any], name: str) -> None:
        rows, cols = self.shape
        if not (0 <= rect.r0 <= rect.r1 <= rows and 0 <= rect.c0 <= rect.c1 <= cols):
            raise ShapeError(f"rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1} lie outside {self}")
        if array.shape != (rect.r1 - rect.r0, rect.c1 - rect.c0):
            raise ShapeError(f"{name} has shape {array.shape}, but the rectangle {tuple(rect)} of {self} has shape {rect.shape}")

    @abc.abstractmethod
    def _read(self, rect: Rect, out: NDArray[Any]) -> None: ...

    def _write(self, rect: Rect, data: NDArray[Any]) -> None:
        raise StorePermissionError(f"{self} is read-only")

    def view(self, rect: Rect) -> NDArray[Any] | None:
        """The elements themselves, not a copy, if they lie in this process's memory as :attr:`dtype`; else ``None``."""
        return None

    def is_zero(self, rect: Rect) -> bool:
        """Whether all elements of ``rect`` are known to be zero without reading any."""
        if self.structure == "lower":
            return rect.r1 <= rect.c0
        if self.structure == "upper":
            return rect.c1 <= rect.r0
        return rect.size == 0

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        """Most bytes that one ``read`` or ``write`` of such a rectangle allocates besides the caller's array.

        Counted per thread, for an array with contiguous rows; 0 when data move straight between the caller's (aligned)
        array and the store. A buffer that the thread keeps for its next call is counted every time.
        """
        return 0

    def kept_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes that are worth keeping from one read to the next, all threads together, when such rectangles are read."""
        return 0

    def keeping(self, nbytes: int) -> AbstractContextManager[None]:
        """While the block runs, keep up to so many bytes from one read to the next: nobody else changes the data meanwhile."""
        return nullcontext()

    def begin_write(self, *, reserve: bool = True) -> None:
        """Make a finished store an output: it stops looking finished, to any reader, until :meth:`commit`.

        Parameters
        ----------
        reserve : bool
            All of it will be written: have the file system keep room for the parts of a file that have taken none so far.

        Raises
        ------
        StorePermissionError
            If the store cannot be written.
        StoreFullError
            If there is no room; the store is as it was.
        """
        if not self.writable:
            raise StorePermissionError(f"{self} is read-only")

    def commit(self, **attributes: Any) -> None:
        """Finish the output, atomically and metadata last; ``attributes`` are added to :attr:`attributes`."""
        self.attributes.update(attributes)

    def discard(self) -> None:  # noqa: B027 - a store that creates nothing has nothing to remove
        """Give up an output: remove whatever was created for it (a store that existed before stays unfinished)."""

    def close(self) -> None:
        """Release what the store holds; an unfinished output is discarded."""
        self.discard()

    def overlaps(self, other: TileStore) -> bool:
        """Whether the two stores may share bytes, so that writing one changes the other."""
        mine, theirs = self._footprints(), other._footprints()
        return any(_overlap(a, b) for a in mine for b in theirs)

    def lies_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file or folder of this name would share bytes with the store."""
        place = (os.path.realpath(Path(path).expanduser()), 0, math.inf)
        return any(_overlap(place, mine) for mine in self._footprints())

    def _footprints(self) -> list[Footprint]:
        return [] if self.path is None else [(os.path.realpath(self.path), 0, math.inf)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        where = f" {os.fspath(self.path)!r}" if self.path is not None else ""
        form = "" if self.structure == "full" else f" {self.structure}"
        return f"<{type(self).__name__}{where} {self.shape[0]} x {self.shape[1]} {self.dtype}{form}>"


class TileJournal(Protocol):
    """What a driver's run asks of the journal of an output (:mod:`pycauset.storage.journal`).

    The generation of a tile is the number of tasks that have written it, in the driver's order.
    """

    def generation(self, tile: Rect) -> int:
        """The generation of a tile that is safe on disk, 0 if none is."""

    def write(self, tile: Rect, generation: int, part: Rect, data: NDArray[Any]) -> None:
        """Write ``part`` (whole chunks) of a tile; thread-safe. Afterwards the store reads it."""

    def flush(self) -> None:
        """Make everything written so far durable."""


def _overlap(a: Footprint, b: Footprint) -> bool:
    if a[0] == b[0]:
        return a[1] < b[2] and b[1] < a[2]
    # A file inside the other store's folder belongs to that store.
    return bool(a[0] and b[0]) and (a[0].startswith(b[0] + os.sep) or b[0].startswith(a[0] + os.sep))
