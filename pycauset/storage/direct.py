"""Bytes between files and the caller's memory: O_DIRECT where the file system allows it, buffered where not.

With O_DIRECT the address, the offset and the length of a transfer must be multiples of 4096 bytes; then the disk moves the
data and no processor touches them. Rows that lie apart in memory (a chunk's place in a wider slot) still go in one
call, as an I/O vector. Everything else passes through one aligned buffer per thread, allocated once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ALIGNMENT", "BOUNCE_BYTES", "DirectFile", "aligned_empty", "bounce_buffer", "crc32c", "preallocate"]

ALIGNMENT: Final = 4096
BOUNCE_BYTES: Final = 4 << 20
"""Size of the buffer each thread keeps for transfers that cannot be direct."""

_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
_IOV_MAX: Final = 1024
_KEEP_SIZE: Final = 1  # of fallocate(2)
_CRC_PIECE: Final = 1 << 20  # the checksum holds the GIL: 70 microseconds at a time
_ZEROS: Final = bytes(_CRC_PIECE)
_VECTORED: Final = sys.platform == "linux" and ctypes.sizeof(ctypes.c_long) == 8

Bytes = NDArray[np.uint8]

_local = threading.local()


def aligned_empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
    """An uninitialised array whose address is a multiple of 4096 bytes, as direct I/O needs.

    Examples
    --------
    >>> aligned_empty((3, 5), "float64").__array_interface__["data"][0] % 4096
    0
    """
    kind = np.dtype(dtype)
    nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + nbytes].view(kind).reshape(shape)


def address(array: NDArray[Any]) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def bounce_buffer(nbytes: int = BOUNCE_BYTES) -> Bytes:
    """The calling thread's own aligned buffer of at least ``nbytes``; fresh memory is slow to touch, so it is kept."""
    buffer: Bytes | None = getattr(_local, "bounce", None)
    if buffer is None or buffer.size < nbytes:
        _local.bounce = None  # the old one goes before the new one comes
        buffer = _local.bounce = aligned_empty(-(-nbytes // ALIGNMENT) * ALIGNMENT)
    return buffer


def tail_buffer() -> Bytes:
    """Two blocks of this thread for the odd end of a file: the last bytes and the checksum."""
    buffer: Bytes | None = getattr(_local, "tail", None)
    if buffer is None:
        buffer = _local.tail = aligned_empty(2 * ALIGNMENT)
    return buffer


def spare_buffer(nbytes: int) -> Bytes:
    """A second buffer of this thread, for whole chunks that are changed in part."""
    buffer: Bytes | None = getattr(_local, "spare", None)
    if buffer is None or buffer.size < nbytes:
        _local.spare = None
        buffer = _local.spare = aligned_empty(-(-nbytes // ALIGNMENT) * ALIGNMENT)
    return buffer


def rows_contiguous(array: NDArray[Any]) -> bool:
    """Whether each row of a two-dimensional array is one run of bytes, and rows follow each other without overlap."""
    (rows, cols), (down, right), size = array.shape, array.strides, array.itemsize
    return (cols == 1 or right == size) and (rows == 1 or down >= cols * size)


def is_aligned(array: NDArray[Any], offset: int) -> bool:
    """Whether a two-dimensional array with contiguous rows can be moved to or from ``offset`` by direct I/O."""
    if (address(array) | offset) % ALIGNMENT:
        return False
    if array.flags.c_contiguous:
        return array.nbytes % ALIGNMENT == 0
    return _VECTORED and (array.strides[0] | (array.shape[1] * array.itemsize)) % ALIGNMENT == 0


def crc32c(data: NDArray[Any], value: int = 0) -> int:
    """CRC-32C (Castagnoli) of an array with contiguous rows, continuing from ``value``.

    Examples
    --------
    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    from google_crc32c import extend

    if data.ndim == 2 and not data.flags.c_contiguous:
        for row in data:
            value = extend(value, row)
        return int(value)
    flat = data.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CRC_PIECE):
        value = extend(value, flat[start : start + _CRC_PIECE])
    return int(value)


def crc32c_zeros(count: int, value: int) -> int:
    """The checksum after ``count`` more zero bytes."""
    from google_crc32c import extend

    for start in range(0, count, _CRC_PIECE):
        value = extend(value, _ZEROS[: min(_CRC_PIECE, count - start)])
    return int(value)


# Every transfer ends in one of these three names; tests replace them to fake a full disk or a short count.


def _preadv(fd: int, buffers: Sequence[Any], offset: int) -> int:
    return os.preadv(fd, buffers, offset)


def _pwritev(fd: int, buffers: Sequence[Any], offset: int) -> int:
    return os.pwritev(fd, buffers, offset)


def _open(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags, mode)


class DirectFile:
    """An open file that prefers direct transfers and falls back to buffered ones when they are refused.

    Parameters
    ----------
    path : str
    flags : int
        As for :func:`os.open`; a file that is created must not need ``O_EXCL`` (some file systems create it before they
        refuse ``O_DIRECT``).
    direct : bool
        False asks for buffered I/O from the start.
    """

    __slots__ = ("direct", "fd", "path", "refused")

    def __init__(self, path: str, flags: int, *, direct: bool = True, mode: int = 0o666) -> None:
        self.path = path
        self.direct = direct and _O_DIRECT != 0
        self.refused = False  # the file system takes no direct I/O: do not ask again
        if self.direct:
            try:
                self.fd = _open(path, flags | _O_DIRECT, mode)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                self.direct, self.refused = False, True
        self.fd = _open(path, flags, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)

    def size(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self.fd).st_size

    def takes(self, array: NDArray[Any], offset: int) -> bool:
        """Whether a two-dimensional array with contiguous rows can be moved without a buffer in between."""
        if not self.direct:
            return _VECTORED or array.flags.c_contiguous
        return is_aligned(array, offset)

    def read(self, array: NDArray[Any], offset: int) -> int:
        """Fill ``array`` from ``offset`` on; returns the bytes moved, fewer than asked only at the end of the file."""
        return self._move(array, offset, reading=True)

    def write(self, array: NDArray[Any], offset: int) -> None:
        """Write all of ``array`` at ``offset``."""
        self._move(array, offset, reading=False)

    def truncate(self, length: int) -> None:
        """Set the file's length; a longer one is filled with zeros that take no space."""
        os.ftruncate(self.fd, length)

    def _move(self, array: NDArray[Any], offset: int, *, reading: bool) -> int:
        if not array.flags.c_contiguous:
            return self._move_rows(array, offset, reading=reading)
        view = array.reshape(-1).view(np.uint8).data
        call, done, total = (_preadv if reading else _pwritev), 0, len(view)
        while done < total:
            try:
                count = call(self.fd, [view[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.refused = True
                self._leave_direct()
                continue
            if count == 0:
                if reading:
                    break
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
            done += count
            if self.direct and done % ALIGNMENT and done < total:
                self._leave_direct()  # a short count broke the alignment
        return done

    def _move_rows(self, array: NDArray[Any], offset: int, *, reading: bool) -> int:
        """One system call for up to 1024 rows that lie apart in memory but together in the file."""
        rows, length, down = array.shape[0], array.shape[1] * array.itemsize, array.strides[0]
        start, done = address(array), 0
        for first in range(0, rows, _IOV_MAX):
            count = min(_IOV_MAX, rows - first)
            vector = np.empty((count, 2), np.uint64)
            vector[:, 0] = np.arange(start + first * down, start + (first + count) * down, down, dtype=np.uint64)
            vector[:, 1] = length
            moved = _vector_call(self.fd, vector, offset + first * length, reading=reading)
            if moved == count * length:
                done += moved
                continue
            # Short, or refused: finish these rows one at a time, where the loop for short counts is.
            if moved % ALIGNMENT or moved < 0:
                self.refused = self.refused or moved < 0
                self._leave_direct()
            row, skip = divmod(max(0, moved), length)
            done += max(0, moved)
            for k in range(first + row, first + count):
                part = array[k].view(np.uint8)[skip:]
                moved = self._move(part, offset + k * length + skip, reading=reading)
                done += moved
                if moved < part.size:
                    return done
                skip = 0
        return done

    def _leave_direct(self) -> None:
        if self.direct:
            self.direct = False
            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~_O_DIRECT)


def _vector_call(fd: int, vector: NDArray[np.uint64], offset: int, *, reading: bool) -> int:
    """``preadv`` or ``pwritev`` of an I/O vector held in an array (no Python object per row); -1 if refused (EINVAL)."""
    library = _libc()
    call = library.preadv if reading else library.pwritev
    while True:
        moved = int(call(fd, address(vector), len(vector), offset))
        if moved >= 0:
            return moved
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            return -1
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    global _library
    if _library is None:
        library = ctypes.CDLL(None, use_errno=True)  # releases the GIL during the call
        for name in ("preadv", "pwritev"):
            function = getattr(library, name)
            function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
            function.restype = ctypes.c_ssize_t
        if hasattr(library, "fallocate"):
            library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
            library.fallocate.restype = ctypes.c_int
        _library = library
    return _library


_library: ctypes.CDLL | None = None


def preallocate(fd: int, nbytes: int, start: int = 0, *, grow: bool = True) -> bool:
    """Have the file system set ``nbytes`` aside for a file, from ``start`` on; False where it cannot without writing them.

    A shorter file gets that length if it may ``grow``.

    ``posix_fallocate`` is avoided: where the file system lacks the call it writes every block, minutes for a large output.

    Raises
    ------
    OSError
        ENOSPC or EDQUOT if there is no room.
    """
    if nbytes == 0:
        return True
    if not (_VECTORED and hasattr(_libc(), "fallocate")):
        return False
    while _libc().fallocate(fd, 0 if grow else _KEEP_SIZE, start, nbytes) != 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
