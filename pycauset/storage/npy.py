"""NumPy's ``.npy`` files, read and written in place: never mapped, never loaded whole.

Outputs get a header of 4096 bytes (NumPy reads any length), so that whole rows can move by direct I/O. The header is
written last; until then the file has a hidden name and does not look like a ``.npy`` file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import (
    ConfigError,
    CorruptTileError,
    ShapeError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
    StorePermissionError,
)
from pycauset.storage.array import row_chunks
from pycauset.storage.base import TileStore, cast_unsafe, element_type, file_signature, place, shared_state, store_error
from pycauset.storage.direct import BOUNCE_BYTES, DirectFile, bounce_buffer, is_aligned, preallocate, rows_contiguous
from pycauset.storage.output import (
    check_space,
    check_target,
    free_bytes,
    fsync_folder,
    full_error,
    hidden_sibling,
    lock,
    set_aside,
    sweep,
)
from pycauset.tiling import Rect

__all__ = ["MAGIC", "UNFINISHED_MAGIC", "NpyStore"]

MAGIC: Final = b"\x93NUMPY"
UNFINISHED_MAGIC: Final = b"\x93UNFIN"
_HEADER_BYTES: Final = 4096


class NpyStore(TileStore):
    """A two- or one-dimensional array in a ``.npy`` file, C or Fortran order, either byte order.

    Made by :func:`open_store` and :func:`create_store`. A ``.npy`` file has no place for attributes: they last as long as
    the store object. One dimension becomes a column.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], stored: np.dtype[Any], *, fortran: bool, offset: int, output: bool = False
    ) -> None:
        self.dtype = element_type(stored, os.fspath(path))
        if len(shape) not in (1, 2):
            raise ShapeError(f"{path} holds an array of shape {shape}; only one or two dimensions make a vector or matrix")
        if min(shape) < 0:
            raise CorruptTileError(f"{path} has a damaged .npy header: shape {shape}")
        self.shape = (int(shape[0]), int(shape[1]) if len(shape) == 2 else 1)
        self.path = path
        self.attributes = {}
        self._stored, self._fortran, self._offset = stored, fortran and len(shape) == 2, offset
        self._lines = (self.shape[1], self.shape[0]) if self._fortran else self.shape  # as they lie in the file
        self.chunks = row_chunks(self.shape, self.dtype, fortran=self._fortran)
        self._file = os.fspath(path)
        self._output: _OutputFile | None = None
        self._marked = self._changed = False
        self._missing = 0
        self._count = threading.Lock()
        real = os.path.realpath(path)
        self.identity = ("file", real)
        self._real = real
        self._state = shared_state(real, None if output else file_signature(real))
        self._incarnation = self._state.incarnation
        self._seen: tuple[int, int, int, int, int] | None = None  # signature of the file when its header was last compared
        self._header_read = b""

    @classmethod
    def open(cls, path: Path) -> NpyStore:
        """Open an existing file.

        Raises
        ------
        CorruptTileError
            If the header makes no sense or the file is shorter than it says.
        """
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, stored = reader(file)
                offset = file.tell()
                status = os.fstat(file.fileno())
                file.seek(0)
                header = file.read(offset)
        except OSError as error:
            raise store_error(error, f"opening {path}") from error
        except Exception as error:  # ValueError, SyntaxError, TokenError, ...: NumPy parses the header as Python
            raise CorruptTileError(f"{path} has a damaged .npy header: {error}") from error
        store = cls(path, shape, stored, fortran=bool(fortran), offset=offset)
        store._check_length(status.st_size)
        store._seen, store._header_read = _signature(status), header[len(MAGIC) :]
        store.writable = os.access(path, os.W_OK)
        return store

    @classmethod
    def create(cls, path: Path, shape: tuple[int, int], dtype: DTypeLike, *, overwrite: bool | None = None) -> NpyStore:
        """Begin a new file; it appears under ``path`` at :meth:`commit`."""
        kind = element_type(dtype, "the output")
        if min(shape) < 0:
            raise ShapeError(f"shape {shape} has a negative size")
        store = cls(path, shape, kind.newbyteorder("<"), fortran=False, offset=_HEADER_BYTES, output=True)
        store._output = _OutputFile(path, _HEADER_BYTES + store.nbytes, repr(store), overwrite=overwrite)
        store._file = store._output.path
        store._missing = shape[0] * shape[1]
        store.writable = True
        return store

    @property
    def generation(self) -> int | None:
        return self._state.generation

    @property
    def unfinished(self) -> bool:
        """Whether it is being written: not yet committed, or begun anew."""
        return self._output is not None or self._marked

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        return 0 if np.dtype(dtype) == self._stored and not self._fortran else BOUNCE_BYTES

    # --- reading and writing: both cut the rectangle until each part is rows of the file and rows in memory ------------

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        try:
            self._transfer(rect, out, reading=True)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, f"reading {self._file}") from error

    def _write(self, rect: Rect, data: NDArray[Any]) -> None:
        if self._output is None and not self._marked:
            raise StorePermissionError(f"{self} is finished; call begin_write() before writing to it, and commit() after")
        try:
            self._changed = True
            self._transfer(rect, data, reading=False)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, f"writing {self._file}") from error
        with self._count:
            self._missing -= rect.size
        self._state.bump()

    def _transfer(self, rect: Rect, array: NDArray[Any], *, reading: bool) -> None:
        if self._fortran:
            rect, array = rect.T, array.T
        item = self._stored.itemsize
        whole_rows = rect.c0 == 0 and rect.c1 == self._lines[1]
        start = self._offset + (rect.r0 * self._lines[1] + rect.c0) * item
        straight = array.dtype == self._stored and rows_contiguous(array)
        direct = straight and whole_rows and is_aligned(array, start)
        with DirectFile(self._file, os.O_RDONLY if reading else os.O_RDWR, direct=direct) as file:
            self._check_same(file)
            if straight:
                self._move(file, rect, array, reading=reading)
                return
            cols = min(rect.c1 - rect.c0, BOUNCE_BYTES // item)
            rows = max(1, BOUNCE_BYTES // (cols * item))
            for r0 in range(rect.r0, rect.r1, rows):
                for c0 in range(rect.c0, rect.c1, cols):
                    part = Rect(r0, min(r0 + rows, rect.r1), c0, min(c0 + cols, rect.c1))
                    block = bounce_buffer()[: part.size * item].view(self._stored).reshape(part.shape)
                    mine = array[part.shift(-rect.r0, -rect.c0).slices]
                    if reading:
                        self._move(file, part, block, reading=True)
                        if mine.strides[0] < mine.strides[1]:  # transposed in memory: copy in cache-sized bands
                            place(mine.T, block, "symmetric")
                        else:
                            place(mine, block)
                    else:
                        cast_unsafe(block, mine)
                        self._move(file, part, block, reading=False)

    def _move(self, file: DirectFile, rect: Rect, array: NDArray[Any], *, reading: bool) -> None:
        """``array`` has the file's element type and contiguous rows."""
        item, width = self._stored.itemsize, self._lines[1]
        start, step = self._offset + (rect.r0 * width + rect.c0) * item, width * item
        rows = rect.r1 - rect.r0
        if rect.c1 - rect.c0 == width:
            rows, step = 1, 0  # all of it lies together
        elif reading and rows > 1 and hasattr(os, "posix_fadvise"):  # many short reads: let the disk see them all at once
            length = (rect.c1 - rect.c0) * item
            for k in range(rows):
                os.posix_fadvise(file.fd, start + k * step, length, os.POSIX_FADV_WILLNEED)
        for k in range(rows):
            part = array[k : k + 1] if step else array
            at = start + k * step
            if not reading:
                file.write(part, at)
            elif file.read(part, at) < part.nbytes:
                self._check_length(file.size())
                raise CorruptTileError(f"{self._file} ended early while being read")

    def _check_length(self, found: int) -> None:
        expected = self._offset + self.nbytes
        if found < expected:
            raise CorruptTileError(
                f"{self.path} is truncated: its header promises {self.shape[0]} x {self.shape[1]} {self.dtype}, so "
                f"{expected} bytes, but it has {found}; restore the file or make the matrix again"
            )

    def _check_same(self, file: DirectFile) -> None:
        """The file is the one that was opened: its number may be another's by now, so the length and the header must be too."""
        if self._seen is None:  # an output under a name of its own
            return
        status = os.fstat(file.fd)
        now = _signature(status)
        if now == self._seen and self._incarnation == self._state.incarnation:
            return
        same = now[:2] == self._seen[:2] and self._incarnation == self._state.incarnation
        if same:
            self._check_length(status.st_size)
        if not same or now[2] != self._seen[2] or _header_of(self._file, self._offset) != self._header_read:
            raise StoreNotFoundError(
                f"{self.path} is not the file that was opened ({self.shape[0]} x {self.shape[1]} {self.dtype}): it was replaced "
                "while in use; open it again, and leave it in its place until the work is done"
            )
        self._seen = now  # somebody wrote elements

    # --- life of an output -------------------------------------------------------------------------------------------

    def begin_write(self, *, reserve: bool = True) -> None:
        super().begin_write(reserve=reserve)
        if self._output is None and not self._marked:
            self._prepare(reserve)
            self._mark(UNFINISHED_MAGIC)
            self._marked, self._changed = True, False
            self._state.bump()

    def commit(self, **attributes: Any) -> None:
        """Finish the file: header, sync, and for a new file its name.

        Raises
        ------
        StoreError
            If fewer elements were written than the matrix has.
        """
        if self._output is not None:
            if self._missing > 0:
                raise StoreError(
                    f"{self} cannot be finished: at least {self._missing} of its elements were never written; "
                    "write them or discard() the output"
                )
            header = self._header()
            self._output.publish(header)
            self._output, self._file = None, os.fspath(self.path or "")
            self._header_read = header[len(MAGIC) :]
            self._incarnation = self._state.replaced()
        elif self._marked:
            self._mark(MAGIC)
            self._marked = False
        elif not self.writable:
            raise StorePermissionError(f"{self} is read-only")
        self._seen = _signature(os.stat(self._file))
        self._state.signature = file_signature(self._real)
        self.attributes.update(attributes)

    def discard(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None
        elif self._marked and not self._changed:
            with contextlib.suppress(StoreError):  # nothing was overwritten: the matrix is as it was
                self._mark(MAGIC)
        self._marked = False

    def _prepare(self, reserve: bool) -> None:
        """Before a file becomes an output: it is the one that was opened, and has room for what is to be written."""
        try:
            with DirectFile(self._file, os.O_RDWR, direct=False) as file:
                self._check_same(file)
                if reserve:
                    set_aside(file.fd, 0, self._offset + self.nbytes, os.fspath(self.path or ""), repr(self))
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, f"beginning to write {self.path}") from error

    def _mark(self, magic: bytes) -> None:
        try:
            fd = os.open(self._file, os.O_WRONLY)
            try:
                os.pwrite(fd, magic, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise store_error(error, f"writing the header of {self._file}") from error

    def _header(self) -> bytes:
        fields = f"{{'descr': {self._stored.str!r}, 'fortran_order': False, 'shape': {self.shape}, }}"
        length = _HEADER_BYTES - len(MAGIC) - 4
        return MAGIC + b"\x01\x00" + length.to_bytes(2, "little") + fields.ljust(length - 1).encode("latin1") + b"\n"


class _OutputFile:
    """A hidden file of its final length, which keeps its lock until it gets its name or goes."""

    def __init__(self, target: Path, nbytes: int, what: str, *, overwrite: bool | None) -> None:
        check_target(target, overwrite)
        if target.is_dir():
            raise StoreExistsError(f"{target} is a folder; a .npy file cannot replace it")
        sweep(target)
        folder = os.fspath(target.parent)
        check_space(folder, nbytes, what)
        self.target, self.overwrite = target, overwrite
        self.path = os.fspath(hidden_sibling(target))
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise store_error(error, f"creating {target}") from error
        self._finalizer = weakref.finalize(self, _remove_file, self.path, self._fd, os.getpid())
        lock(self._fd)
        try:
            if not preallocate(self._fd, nbytes):
                os.ftruncate(self._fd, nbytes)
        except OSError as error:
            self._finalizer()
            typed = store_error(error, f"setting {nbytes} bytes aside in {folder}")
            if isinstance(typed, StoreFullError):
                raise full_error(folder, nbytes, free_bytes(folder), what) from error
            raise typed from error

    def publish(self, header: bytes) -> None:
        """Header last, then the name."""
        try:
            os.pwrite(self._fd, header, 0)
            os.fsync(self._fd)
            if self.overwrite:
                os.replace(self.path, self.target)
            else:
                _rename_new(self.path, self.target)
            fsync_folder(os.fspath(self.target.parent))
        except FileExistsError as error:
            raise StoreExistsError(f"{self.target} appeared while it was being made; remove it or choose another name") from error
        except OSError as error:
            raise store_error(error, f"finishing {self.target}") from error
        self._finalizer.detach()
        os.close(self._fd)

    def discard(self) -> None:
        self._finalizer()


def _signature(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _header_of(path: str, length: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)[len(MAGIC) :]


def _rename_new(path: str, target: Path) -> None:
    """Rename unless the target exists (a plain rename would replace it)."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if os.path.lexists(target):
            raise FileExistsError(os.fspath(target)) from None
        os.rename(path, target)
    else:
        os.unlink(path)


def _remove_file(path: str, fd: int, pid: int) -> None:
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(fd)


def check_options(chunks: object, checksum: bool, structure: str) -> None:
    """Refuse what a ``.npy`` file cannot have."""
    for name, value, off in (("chunks", chunks, None), ("checksum", checksum, False), ("structure", structure, "full")):
        if value != off:
            raise ConfigError(f"a .npy file cannot have {name}={value!r}; use a Zarr folder (a path without .npy)")
