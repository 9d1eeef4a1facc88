"""Arrays of other libraries: compressed, sharded or remote Zarr, HDF5 datasets, anything with shape, dtype and [].

Their own library reads them; a rectangle is cut along their chunks, so that no more than a few chunks are decoded at a time.
A part of a chunk costs them a whole one: then the chunks around it are decoded and kept, for the parts that follow.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import CorruptTileError, PycausetError, ShapeError, StoreError, StoreNotFoundError
from pycauset.storage.array import row_chunks
from pycauset.storage.base import Footprint, TileStore, element_type, place, store_error
from pycauset.storage.held import HeldFolder
from pycauset.tiling import Rect, ceil_div, pieces, round_up

__all__ = ["ForeignStore", "open_zarr"]

UNFINISHED_ATTRIBUTE: Final = "pycauset_unfinished"
"""An attribute of a Zarr array of another library while it is being overwritten."""
_UNIT_BYTES: Final = 8 << 20
_HDF5_CACHE_BYTES: Final = 1 << 20
#: Decoded chunks that a store keeps; one that is larger by itself is kept alone, up to the second figure.
_KEPT_BYTES, _KEPT_CHUNK_BYTES = 16 << 20, 256 << 20

_hdf5_lock: Final = threading.Lock()


class ForeignStore(TileStore):
    """An array that its own library reads (and writes, where it can).

    Parameters
    ----------
    array : object
        With ``shape`` (one or two dimensions), ``dtype``, and ``array[r0:r1, c0:c1]``. HDF5 datasets are read under h5py's
        global lock, zarr arrays freely, other objects one call at a time. A result with ``get`` (CuPy) or ``toarray``
        (SciPy sparse) is converted.

    Raises
    ------
    ShapeError, DtypeError
        If it is no matrix of numbers.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._kind = type(array).__module__.partition(".")[0]
        what = f"the {type(array).__module__}.{type(array).__qualname__}"
        shape = tuple(int(n) for n in array.shape)
        if len(shape) not in (1, 2):
            raise ShapeError(f"{what} has shape {shape}; only one or two dimensions make a vector or matrix")
        self._column = len(shape) == 1
        self.shape = (shape[0], 1 if self._column else shape[1])
        self.dtype = element_type(array.dtype, what)
        self._grain = _grain(array, self._column)
        self.chunks = _unit(self.shape, self.dtype, self._grain)
        self.attributes = {}
        self.whole_chunks = self._grain is not None
        self._kept: dict[Rect, NDArray[Any]] = {}
        self._grants: list[int] = []
        self._kept_lock = threading.Lock()
        self._lock: AbstractContextManager[Any] = _lock_of(array, self._kind)
        self._write_lock = threading.Lock()
        self._place, self.path = _where(array, self._kind)
        #: The file that holds the array beside others, for an HDF5 dataset.
        self.container = os.path.realpath(array.file.filename) if self._kind == "h5py" else None
        self.writable = hasattr(array, "__setitem__") and not _read_only(array, self._kind)
        self._folder = HeldFolder(os.fspath(self.path)) if self.path is not None and self.path.is_dir() else None
        inode = self._folder.inode if self._folder is not None else ()
        self.identity = ("file", self._place, *inode) if self._place else ("object", id(array))
        self._unfinished = self._folder is not None and bool(array.attrs.get(UNFINISHED_ATTRIBUTE))
        self._marked = self._changed = False
        self._present = _ChunksPresent(array, self.path) if self._kind == "zarr" and self.path is not None else None

    @property
    def unfinished(self) -> bool:
        """Whether it was being overwritten and never finished, as far as it can tell (a Zarr array in a local folder)."""
        return self._unfinished

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        """An estimate from above: the libraries do not tell. Zarr holds encoded and decoded chunks beside the result."""
        unit = math.prod(min(n, c) for n, c in zip(shape, self.chunks, strict=True)) * self.dtype.itemsize
        whole = max(unit, self._grain_bytes())
        if self._kind == "zarr":
            return 4 * whole
        return 2 * whole + (_HDF5_CACHE_BYTES if self._kind == "h5py" else 0)

    def kept_bytes(self, shape: tuple[int, int]) -> int:
        if all(n % c == 0 or n >= size for n, c, size in zip(shape, self._grain or (1, 1), self.shape, strict=True)):
            return 0
        grain = self._grain_bytes()
        return 0 if grain > _KEPT_CHUNK_BYTES else min(max(_KEPT_BYTES, grain), 2 * self.nbytes)  # blocks may overlap

    @contextlib.contextmanager
    def keeping(self, nbytes: int) -> Iterator[None]:
        with self._kept_lock:
            self._grants.append(nbytes)
        try:
            yield
        finally:
            with self._kept_lock:
                self._grants.remove(nbytes)
                self._make_room(0)

    def _grain_bytes(self) -> int:
        return math.prod(map(min, self._grain or (0, 0), self.shape)) * self.dtype.itemsize

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        if self._unfinished and not self._marked:
            raise self.unfinished_error()
        for _, _, part in pieces(rect, self.chunks):
            dest = out[part.shift(-rect.r0, -rect.c0).slices]
            around = self._around(part)
            if around == part or around.size * self.dtype.itemsize > sum(self._grants):
                self._load(part, dest)
                continue
            with self._kept_lock:  # also while it is decoded: whoever wants another part of these chunks waits for it
                block = self._kept.pop(around, None)
                if block is None:
                    self._make_room(around.size * self.dtype.itemsize)
                    block = np.empty(around.shape, self.dtype)
                    self._load(around, block)
                self._kept[around] = block  # at the end: used last
                place(dest, block[part.shift(-around.r0, -around.c0).slices])

    def _around(self, part: Rect) -> Rect:
        """The whole chunks that a rectangle touches."""
        h, w = self._grain or (1, 1)
        rows, cols = self.shape
        return Rect(part.r0 // h * h, min(round_up(part.r1, h), rows), part.c0 // w * w, min(round_up(part.c1, w), cols))

    def _make_room(self, nbytes: int) -> None:
        """Forget the chunks that were not used for longest."""
        held = sum(block.nbytes for block in self._kept.values())
        while self._kept and held + nbytes > sum(self._grants):
            held -= self._kept.pop(next(iter(self._kept))).nbytes

    def _load(self, part: Rect, dest: NDArray[Any]) -> None:
        try:
            with self._lock:
                self._fetch(part, dest)
        except (PycausetError, MemoryError):
            raise
        except Exception as error:
            self._check_same(gone=False)  # then that is the reason
            raise self._typed(error, part) from error
        self._check_same(gone=False)
        if self._present is not None:
            self._present.check(part, self._column)

    def _check_same(self, *, gone: bool = True) -> None:
        """Refuse to go on in a folder that has taken this array's name; or, unless ``gone`` is False, in none at all."""
        same = self._folder is None or self.path is None or self._folder.is_at(os.fspath(self.path))
        if same is False or (same is None and gone):
            raise StoreNotFoundError(
                f"{self} was {'replaced' if same is False else 'moved or deleted'} while in use; open it again, and leave it in "
                "its place until the work is done"
            )

    def unfinished_error(self) -> StoreError:
        """What to raise where an array is read that was never finished."""
        return StoreError(
            f"{self} was being overwritten and never finished, so its contents are a mixture; make it again, or give it as out="
        )

    def _fetch(self, rect: Rect, dest: NDArray[Any]) -> None:
        index = rect.slices[:1] if self._column else rect.slices
        if self._kind == "h5py" and dest.flags.c_contiguous and dest.dtype == self._array.dtype and self._array.chunks is None:
            self._array.read_direct(dest.reshape(-1) if self._column else dest, source_sel=index)
            return
        part = self._array[index]
        if hasattr(part, "toarray"):
            part = part.toarray()
        elif hasattr(part, "__cuda_array_interface__") and hasattr(part, "get"):
            part = part.get()
        values = np.asarray(part)
        if self._column and values.ndim == 1:
            values = values[:, None]
        if values.shape != dest.shape:
            raise ShapeError(f"{self} returned shape {values.shape} for rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1}")
        place(dest, values)

    def _write(self, rect: Rect, data: NDArray[Any]) -> None:
        index = rect.slices[:1] if self._column else rect.slices
        grain = self._grain or (1, 1)
        aligned = all(
            start % c == 0 and (stop % c == 0 or stop == size)
            for start, stop, c, size in zip(rect[::2], rect[1::2], grain, self.shape, strict=True)
        )
        # Two writers in one chunk of a compressed array would each put back the other's old part.
        alone = contextlib.nullcontext() if aligned and self._grain else self._write_lock
        self._check_same()
        self._changed = True
        values = data if data.dtype == self.dtype else data.astype(self.dtype, casting="unsafe")
        try:
            with alone, self._lock:
                self._array[index] = values[:, 0] if self._column else values
            with self._kept_lock:
                self._kept.clear()
        except (PycausetError, MemoryError):
            raise
        except Exception as error:
            raise self._typed(error, rect) from error

    # --- life of an output: a Zarr array in a local folder says in its attributes that it is unfinished --------------

    def begin_write(self, *, reserve: bool = True) -> None:
        super().begin_write(reserve=reserve)
        if self._folder is not None and not self._marked:
            self._check_same()
            self._mark(True)
            self._marked, self._changed = True, False

    def commit(self, **attributes: Any) -> None:
        if self._marked:
            self._check_same()
            self._mark(False)
            self._marked = self._unfinished = False
        super().commit(**attributes)

    def discard(self) -> None:
        if self._marked and self._changed:
            self._unfinished = True
        elif self._marked and not self._unfinished:
            with contextlib.suppress(StoreError):  # nothing was overwritten: the array is as it was
                self._mark(False)
        self._marked = False

    def _mark(self, unfinished: bool) -> None:
        try:
            if unfinished:
                self._array.attrs[UNFINISHED_ATTRIBUTE] = True
            else:
                del self._array.attrs[UNFINISHED_ATTRIBUTE]
        except Exception as error:
            doing = f"writing the attributes of {self}"
            if isinstance(error, OSError) and error.errno:
                raise store_error(error, doing) from error
            raise StoreError(f"{doing} failed: {type(error).__name__}: {error}") from error

    def _typed(self, error: Exception, rect: Rect) -> StoreError:
        doing = f"reading or writing rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1} of {self}"
        if isinstance(error, OSError) and error.errno:
            return store_error(error, doing)
        if self._kind == "h5py" and not self._array:
            return StoreError(f"{doing} failed: its HDF5 file is closed; open it again and pass the new dataset")
        if isinstance(error, FileNotFoundError):
            return StoreNotFoundError(f"{doing} failed: {error}")
        kind = CorruptTileError if self._kind in ("zarr", "h5py") else StoreError
        return kind(f"{doing} failed: {type(error).__name__}: {error}")

    def _footprints(self) -> list[Footprint]:
        return [(self._place or f"object {id(self._array)}", 0, math.inf)]

    def __repr__(self) -> str:
        name = self._place or f"{type(self._array).__module__}.{type(self._array).__qualname__}"
        return f"<ForeignStore {name!r} {self.shape[0]} x {self.shape[1]} {self.dtype}>"


def open_zarr(path: str) -> ForeignStore:
    """Open any two- or one-dimensional Zarr array, version 2 or 3, read-only; URLs need fsspec.

    Raises
    ------
    StoreNotFoundError, StoreError
        If there is no array, or the zarr library cannot open it.
    """
    import warnings

    import zarr

    store: Any = path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # codecs outside the specification are read all the same
            if path.endswith(".zip") and "://" not in path:
                store = zarr.storage.ZipStore(path, mode="r")
            array = zarr.open_array(store=store, mode="r")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise StoreNotFoundError(f"there is no Zarr array at {path}: {error}") from error
        raise store_error(error, f"opening {path}") from error
    except Exception as error:
        raise StoreError(f"the zarr library cannot open {path}: {type(error).__name__}: {error}") from error
    found = ForeignStore(array)
    if found.unfinished:
        raise found.unfinished_error()
    return found


class _ChunksPresent:
    """Tells a chunk that was never written (it reads as the fill value) from one that vanished (which zarr reads so, too)."""

    def __init__(self, array: Any, root: Path) -> None:
        from pycauset.storage.native import files_below

        self._root = os.fspath(root)
        self._metadata = array.metadata
        self._shape = tuple(getattr(array, "shards", None) or array.chunks)
        self._files = frozenset(files_below(self._root))

    def check(self, rect: Rect, column: bool) -> None:
        height, width = (self._shape[0], 1) if column else self._shape
        for i in range(rect.r0 // height, ceil_div(rect.r1, height)):
            for j in range(rect.c0 // width, ceil_div(rect.c1, width)):
                key = self._metadata.encode_chunk_key((i,) if column else (i, j))
                if key in self._files and not os.path.exists(os.path.join(self._root, key)):
                    raise StoreNotFoundError(
                        f"chunk {self._root}/{key} has vanished; was the array moved or deleted while in use?"
                    )


def _grain(array: Any, column: bool) -> tuple[int, int] | None:
    """The array's own chunks (its shards, if it has any), or None."""
    sizes = getattr(array, "shards", None) or getattr(array, "chunksize", None) or getattr(array, "chunks", None)
    try:
        found = tuple(int(n) for n in sizes) if sizes else ()
    except TypeError:
        return None
    if column and len(found) == 1:
        found = (*found, 1)
    return (found[0], found[1]) if len(found) == 2 and min(found) > 0 else None


def _unit(shape: tuple[int, int], dtype: np.dtype[Any], grain: tuple[int, int] | None) -> tuple[int, int]:
    """Small chunks are read several at a time: a call into another library costs about a millisecond."""
    if grain is None:
        return row_chunks(shape, dtype)
    times = max(1, math.isqrt(_UNIT_BYTES // max(1, math.prod(grain) * dtype.itemsize)))
    return max(1, min(shape[0], grain[0] * times)), max(1, min(shape[1], grain[1] * times))


def _lock_of(array: Any, kind: str) -> AbstractContextManager[Any]:
    if kind == "zarr":
        return contextlib.nullcontext()
    if kind == "h5py":
        with contextlib.suppress(AttributeError):
            lock: AbstractContextManager[Any] = sys.modules["h5py"]._hl.base.phil  # h5py has no public name for it
            return lock
        return _hdf5_lock
    return threading.Lock()


def _where(array: Any, kind: str) -> tuple[str | None, Path | None]:
    """A name that equals another array's exactly if they are the same data; and the folder, for a local Zarr array."""
    if kind == "h5py":
        return f"{os.path.realpath(array.file.filename)}::{array.name}", None
    if kind == "zarr":
        root = getattr(array.store, "root", None)
        if isinstance(root, Path):
            folder = root / array.path
            return os.path.realpath(folder), folder
        if type(array.store).__name__ != "MemoryStore":
            return f"{array.store}/{array.path}", None
    return None, None


def _read_only(array: Any, kind: str) -> bool:
    if kind == "h5py":
        return bool(array.file.mode == "r")
    if kind == "zarr":
        return bool(array.read_only)
    return False
