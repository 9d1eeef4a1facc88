"""From a path or an array to the store that handles it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from pycauset.errors import ConfigError, DtypeError, ShapeError, StoreError, StoreNotFoundError
from pycauset.storage.array import ArrayStore
from pycauset.storage.base import TileStore, store_error
from pycauset.storage.foreign import ForeignStore, open_zarr
from pycauset.storage.metadata import check_attributes, parse_document
from pycauset.storage.native import ZarrStore
from pycauset.storage.npy import MAGIC, UNFINISHED_MAGIC, NpyStore, check_options
from pycauset.storage.output import UNFINISHED, journal_path, resumable_folder

__all__ = ["as_store", "create_store", "open_store", "path_text"]

_HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC: Final = b"PK\x03\x04"


def open_store(path: str | os.PathLike[str], *, unfinished: bool = False) -> TileStore:
    """Open a matrix on disk: a Zarr array (version 2 or 3), a ``.npy`` file, or the URL of a remote Zarr array.

    Nothing but metadata is read. Uncompressed Zarr v3 arrays are read directly, all others by the zarr library.

    Parameters
    ----------
    path : path-like or str
    unfinished : bool
        Also give a Zarr matrix that was being overwritten when its process was killed, if there is a journal beside it. Nothing
        can be read from it until the same work goes on (:meth:`Journal.in_place`).

    Returns
    -------
    TileStore

    Raises
    ------
    StoreNotFoundError
        If nothing is there, or no array.
    CorruptTileError
        If metadata or header are damaged, or a ``.npy`` file is shorter than its header says.
    ShapeError, DtypeError
        If the array has more than two dimensions, or elements that are no numbers.
    StoreError
        If it is an output that was never finished, or another kind of file.
    DtypeError, ConfigError
        If ``path`` is no path.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "a.npy", np.eye(3))
    >>> open_store(folder / "a.npy").shape
    (3, 3)
    """
    text = path_text(path)
    if "://" in text:
        return open_zarr(text)
    place = _local(text)
    try:
        if place.is_dir():
            return _open_folder(place, unfinished)
        with place.open("rb") as file:
            head = file.read(8)
    except StoreError:
        raise
    except FileNotFoundError:
        hint = _journal_hint(place) if resumable_folder(place).is_dir() else ""
        raise StoreNotFoundError(f"there is no file or folder {place}{hint and f' yet: {hint}'}") from None
    except NotADirectoryError:
        raise _below_a_file(place) from None
    except OSError as error:
        raise store_error(error, f"opening {place}") from error
    if head.startswith(MAGIC):
        return NpyStore.open(place)
    if head.startswith(UNFINISHED_MAGIC):
        raise _unfinished(place)
    if head.startswith(_HDF5_MAGIC):
        raise StoreError(f"{place} is an HDF5 file; open it with h5py and pass the dataset: asmatrix(h5py.File(path)['name'])")
    if head.startswith(_ZIP_MAGIC):
        if place.suffix == ".npz":
            raise StoreError(f"{place} is an archive of arrays; load the one you need with np.load(path)['name']")
        return open_zarr(os.fspath(place))
    raise StoreError(f"{place} is no matrix that pycauset can open: it is neither a Zarr array nor a .npy file")


def path_text(path: Any) -> str:
    """A path as text: from text, bytes or any path object.

    Raises
    ------
    DtypeError
        If it is something else.
    ConfigError
        If no file can be called so.

    Examples
    --------
    >>> path_text(b"a.zarr"), path_text(Path("b.npy"))
    ('a.zarr', 'b.npy')
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise DtypeError(f"the path is {path!r} (type {type(path).__qualname__}); give text or a path object") from None
    if "\0" in text:
        raise ConfigError(f"the path is {text!r}, with a null character in it, which no name of a file can have")
    return text


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~nobody"
        raise ConfigError(f"the path is {text!r}, whose home folder is unknown: {error}") from None


def _below_a_file(place: Path) -> StoreError:
    """Somebody takes a file for a folder, perhaps one that has names inside."""
    file = next((parent for parent in place.parents if parent.is_file()), None)
    if file is None:
        return StoreNotFoundError(f"there is no file or folder {place}")
    with file.open("rb") as opened:
        head = opened.read(8)
    inside = os.fspath(place.relative_to(file))
    if head.startswith(_HDF5_MAGIC):
        return StoreError(
            f"{file} is an HDF5 file; open it with h5py and pass the dataset: "
            f"asmatrix(h5py.File({os.fspath(file)!r})[{inside!r}])"
        )
    return StoreNotFoundError(f"there is no {place}: {file} is a file, not a folder")


def _open_folder(folder: Path, unfinished: bool) -> TileStore:
    document = folder / "zarr.json"
    if document.is_file():
        text = document.read_text(encoding="utf-8", errors="replace")
        meta = parse_document(text, str(document))
        if meta is not None:
            return ZarrStore(folder, meta, writable=os.access(folder, os.W_OK))
        fields = json.loads(text)
        if isinstance(fields, dict) and fields.get("node_type") == "group":
            raise _group(folder)
        if isinstance(fields, dict) and isinstance(fields.get("shape"), list) and len(fields["shape"]) not in (1, 2):
            raise ShapeError(
                f"{folder} holds an array of shape {tuple(fields['shape'])}; only one or two dimensions make a matrix"
            )
        return open_zarr(os.fspath(folder))
    if (folder / UNFINISHED).is_file():
        if unfinished and journal_path(folder).is_file():
            return ZarrStore.reopen(folder)
        raise _unfinished(folder)
    if (folder / ".zarray").is_file():
        return open_zarr(os.fspath(folder))
    if (folder / ".zgroup").is_file():
        raise _group(folder)
    raise StoreNotFoundError(f"folder {folder} holds no Zarr array (no zarr.json or .zarray in it)")


def _group(folder: Path) -> StoreNotFoundError:
    inside = sorted(p.name for p in folder.iterdir() if (p / "zarr.json").is_file() or (p / ".zarray").is_file())
    listing = f"; open one of those in it: {', '.join(inside[:10])}" if inside else ", and there is none in it"
    return StoreNotFoundError(f"{folder} is a Zarr group, not an array{listing}")


def _journal_hint(path: Path) -> str:
    from pycauset.storage.journalfile import hint  # few ever need it

    return hint(path)


def _unfinished(path: Path) -> StoreError:
    found = _journal_hint(path)
    if found:
        return StoreError(f"{path} was being overwritten and never finished: {found}")
    return StoreError(f"{path} was being overwritten and never finished, so its contents are a mixture; make it again")


def as_store(array: Any) -> TileStore:
    """The store of an array in memory, a memory map, a zarr array, an HDF5 dataset, or any object with shape, dtype and [].

    Nothing is copied. One dimension becomes a column.

    Raises
    ------
    DtypeError, ShapeError
        If it is no matrix or vector of numbers.

    Examples
    --------
    >>> as_store(np.arange(3.0)).shape
    (3, 1)
    """
    if isinstance(array, TileStore):
        return array
    if isinstance(array, np.ndarray):
        return ArrayStore(array)
    if isinstance(array, (str, os.PathLike)):
        raise DtypeError(f"{array!r} is a path; open it with open_store(path)")
    if type(array).__module__.partition(".")[0] == "h5py" and not array:
        raise StoreError(f"{array!r}: its HDF5 file is closed; open it again and pass the new dataset")
    if not (hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__")):
        raise DtypeError(
            f"a {type(array).__module__}.{type(array).__qualname__} is no array: it needs shape, dtype and [rows, columns]; "
            "convert it with np.asarray first"
        )
    if not isinstance(array.dtype, np.dtype) and hasattr(array, "__array__"):
        return ArrayStore(np.asarray(array))  # PyTorch and others with their own types
    if type(array).__module__.partition(".")[0] == "zarr":
        native = _native_zarr(array)
        if native is not None:
            return native
    return ForeignStore(array)


def _native_zarr(array: Any) -> ZarrStore | None:
    """The fast path for a zarr array that lies in a local folder, uncompressed."""
    root = getattr(array.store, "root", None)
    if not isinstance(root, Path):
        return None
    document = root / array.path / "zarr.json"
    if not document.is_file():
        return None
    meta = parse_document(document.read_bytes(), str(document))
    if meta is None:
        return None
    return ZarrStore(document.parent, meta, writable=not array.read_only and os.access(document.parent, os.W_OK))


def create_store(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    dtype: DTypeLike,
    *,
    chunks: tuple[int, int] | None = None,
    checksum: bool = False,
    structure: str = "full",
    attributes: dict[str, Any] | None = None,
    overwrite: bool | None = None,
) -> TileStore:
    """Begin a matrix on disk; it appears under ``path`` when :meth:`TileStore.commit` succeeds, never before.

    Parameters
    ----------
    path : path-like
        A ``.npy`` file by its suffix, else a Zarr v3 folder. The folder above must exist.
    shape : (int, int)
    dtype : dtype
        Booleans are stored as packed bits in a Zarr folder, as bytes in a ``.npy`` file.
    chunks : (int, int), optional
        Elements per chunk file; 8 to 16 MiB by default (see :func:`default_chunks`).
    checksum : bool
        Append a crc32c checksum to each chunk.
    structure : str
        ``"full"``, or the structure of which only one triangle's chunks are stored.
    attributes : dict, optional
        JSON values to keep in the metadata.
    overwrite : bool, optional
        Replace a matrix of this name at commit; until then the old one stays. None is False, and the message that the name is
        taken does not advise to pass it.

    Returns
    -------
    TileStore
        Writable; unfinished until committed, and removed if it is discarded, closed or forgotten before.

    Raises
    ------
    StoreFullError
        If the file system has no room for all of it; the message has the bytes needed and free.
    StoreExistsError, StoreNotFoundError, StorePermissionError
        If the name is taken, the folder above is missing, or it cannot be written.
    JournalBusyError, JournalError
        If another process makes a matrix of this name by a journal, or was interrupted at it. In the second case ``overwrite``
        gives that work up, at commit.
    ConfigError
        If the name is one of another kind of file (``.h5``, ``.csv``, ...).

    Examples
    --------
    >>> import tempfile
    >>> from pycauset.tiling import Rect
    >>> path = Path(tempfile.mkdtemp()) / "a.zarr"
    >>> with create_store(path, (4, 4), "float32") as store:
    ...     store.write(Rect(0, 4, 0, 4), np.eye(4))
    ...     store.commit(origin="docs")
    >>> open_store(path).attributes
    {'origin': 'docs'}
    """
    place = _local(path_text(path))  # it must not move if the process changes its folder
    size = (int(shape[0]), int(shape[1]))
    if place.suffix == ".npy":
        check_options(chunks, checksum, structure)
        check_attributes(attributes or {})
        store = NpyStore.create(place, size, dtype, overwrite=overwrite)
        store.attributes.update(attributes or {})
        return store
    return ZarrStore.create(
        place, size, dtype, chunks=chunks, checksum=checksum, structure=structure, attributes=attributes, overwrite=overwrite
    )
