"""Arrays that already lie in memory: NumPy arrays and memory maps, read and written in place."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import DtypeError, ShapeError
from pycauset.storage.base import Footprint, TileStore, cast_unsafe, element_type, store_error
from pycauset.storage.output import set_aside
from pycauset.tiling import Rect

__all__ = ["ArrayStore", "row_chunks"]

_UNIT_BYTES: Final = 8 << 20


def row_chunks(shape: tuple[int, int], dtype: np.dtype[Any], *, fortran: bool = False) -> tuple[int, int]:
    """Whole rows (columns, if they are what lies together) up to 8 MiB."""
    long, across = (shape[0], shape[1]) if fortran else (shape[1], shape[0])
    line = max(1, long) * dtype.itemsize
    count = max(1, min(across, _UNIT_BYTES // line))
    length = max(1, min(long, _UNIT_BYTES // dtype.itemsize))
    return (length, count) if fortran else (count, length)


class ArrayStore(TileStore):
    """A NumPy array or memory map as a store; nothing is copied.

    Parameters
    ----------
    array : ndarray (m, n) or (n,)
        One dimension becomes a column, ``(n, 1)``. Any strides and byte order.

    Raises
    ------
    ShapeError
        If the array has no dimension or more than two.
    DtypeError
        If its elements are no numbers, or it is a masked array (whose mask would be lost).

    Examples
    --------
    >>> import numpy as np
    >>> from pycauset.tiling import Rect
    >>> a = np.arange(6.0).reshape(2, 3)
    >>> store = ArrayStore(a)
    >>> store.view(Rect(0, 2, 1, 3)).tolist(), store.writable
    ([[1.0, 2.0], [4.0, 5.0]], True)
    """

    def __init__(self, array: NDArray[Any]) -> None:
        if isinstance(array, np.ma.MaskedArray):
            raise DtypeError("a masked array cannot be an operand, its mask would be lost; fill it first: array.filled(value)")
        self.dtype = element_type(array.dtype, "the array")
        if array.ndim not in (1, 2):
            raise ShapeError(f"an array of shape {array.shape} is no matrix or vector; reshape it to two dimensions")
        self._file = _mapped_file(array)
        plain = np.asarray(array)
        self._array: NDArray[Any] = plain if plain.ndim == 2 else plain[:, None]
        self.shape = (int(self._array.shape[0]), int(self._array.shape[1]))
        strides = self._array.strides
        self.chunks = row_chunks(self.shape, self.dtype, fortran=abs(strides[0]) < abs(strides[1]))
        self.writable = bool(self._array.flags.writeable)
        self.identity = ("memory", _address(self._array), self.shape, strides, self._array.dtype.str)
        self.attributes = {}
        if self._file is not None:
            self.path = Path(self._file[0])
        self._reserved = self._file is None or not self._file[2]

    @property
    def array(self) -> NDArray[Any]:
        """The array itself, two-dimensional."""
        return self._array

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        np.copyto(out, self._array[rect.slices], casting="same_kind")

    def _write(self, rect: Rect, data: NDArray[Any]) -> None:
        if not self._reserved:
            self._reserve(self._array[rect.slices])
        cast_unsafe(self._array[rect.slices], data)

    def view(self, rect: Rect) -> NDArray[Any] | None:
        return self._array[rect.slices] if self._array.dtype.isnative else None

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        return 0

    def begin_write(self, *, reserve: bool = True) -> None:
        """Nothing to mark. A writable memory map has its room set aside: writing into a hole of a full disk kills the process."""
        super().begin_write(reserve=reserve)
        if reserve and not self._reserved:
            self._reserve(self._array)
            self._reserved = True

    def _reserve(self, part: NDArray[Any]) -> None:
        """Have the file system keep room for a part of a memory map, before anything is written through the mapping."""
        assert self._file is not None
        path, shift, _ = self._file
        if not part.size:
            return
        low, high = np.lib.array_utils.byte_bounds(part)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # it has lost its name, or this user the right to it
            return
        except OSError as error:
            raise store_error(error, f"beginning to write {path}") from error
        try:
            set_aside(fd, low + shift, high - low, path, repr(self))
        finally:
            os.close(fd)

    def commit(self, **attributes: Any) -> None:
        """Nothing to finish: a writable memory map is flushed by its owner."""
        super().commit(**attributes)

    def overlaps(self, other: TileStore) -> bool:
        if not super().overlaps(other):
            return False
        if isinstance(other, ArrayStore) and not (self._file or other._file):
            try:  # interleaved views (a[:, ::2], a[:, 1::2]) have overlapping bounds and no common byte
                return bool(np.shares_memory(self._array, other._array, max_work=10_000))  # type: ignore[arg-type]
            except np.exceptions.TooHardError:
                return True
        return True

    def _footprints(self) -> list[Footprint]:
        if not self._array.size:
            return []
        low, high = np.lib.array_utils.byte_bounds(self._array)
        prints: list[Footprint] = [("", low, high)]
        if self._file is not None:
            path, shift, _ = self._file
            prints.append((path, low + shift, high + shift))
        return prints


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _mapped_file(array: NDArray[Any]) -> tuple[str, int, bool] | None:
    """The file behind an array, what to add to an address to get the offset in it, whether writing changes it; or ``None``."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            if base.filename is None:
                return None
            return os.path.realpath(base.filename), int(base.offset) - _address(base), base.mode in ("r+", "w+")
        if isinstance(base, mmap.mmap):
            return None
        base = getattr(base, "base", None)
    return None
