"""Matrices on disk: opening and saving them."""

from __future__ import annotations

import os
from typing import Any

from pycauset import operations
from pycauset.errors import StoreError, StoreNotFoundError
from pycauset.matrix import Matrix, asmatrix
from pycauset.storage import ArrayStore, ForeignStore, NpyStore, ZarrStore, create_store, open_store, path_text
from pycauset.storage.scratch import is_scratch

__all__ = ["open", "save"]


def open(path: str | os.PathLike[str]) -> Matrix:
    """Open a matrix on disk: a Zarr array (version 2 or 3), a ``.npy`` file, or the URL of a remote Zarr array.

    Nothing but metadata is read. Assigning to elements writes to the file, where that is allowed. A matrix that was being
    overwritten in place when its process was killed can be opened too, if its journal is beside it, but not read: only to make
    the same call again, which goes on.

    Raises
    ------
    StoreNotFoundError, CorruptTileError, StoreError
        If nothing is there, it is damaged or unfinished, or of another kind.
    ShapeError, DtypeError
        If it has more than two dimensions, or elements that are no numbers; or if ``path`` is no path.
    ConfigError
        If no file can have such a name.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "a.zarr")
    >>> save(path, np.eye(3))
    >>> open(path).trace()
    np.float64(3.0)
    """
    return Matrix(open_store(path, unfinished=True))


def save(
    path: str | os.PathLike[str], matrix: Any, *, checksum: bool = False, overwrite: bool = False, progress: Any = None
) -> None:
    """Write a matrix to disk, tile by tile: a Zarr v3 folder, or a ``.npy`` file by its suffix.

    A matrix claimed to be triangular, symmetric, Hermitian or skew-symmetric is stored as one triangle in a Zarr folder.
    The claims are stored with it. A ``.npy`` file holds all elements and no claims: nothing is known of the matrix when it is
    opened again.

    Parameters
    ----------
    path : path-like
        It appears when everything is written, never before.
    matrix : Matrix or array_like (m, n)
    checksum : bool
        Append a crc32c checksum to each chunk (Zarr only).
    overwrite : bool
        Replace a matrix of this name; the old one stays until the new one is finished.
    progress : bool or callable, optional
        See `pycauset.progress.reporter`.

    Raises
    ------
    StoreExistsError, StoreNotFoundError, StorePermissionError, StoreFullError
        If the path is taken, its folder missing or not writable, or the file system too full.
    JournalBusyError, JournalError
        If other work on this path is going on, or was interrupted; ``overwrite=True`` gives interrupted work up.
    DtypeError, ConfigError
        If ``path`` is no path, or names a kind of file that is not written.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npy")
    >>> save(path, [[1.0, 2.0]])
    >>> np.load(path)
    array([[1., 2.]])
    """
    name = path_text(path)
    a = asmatrix(matrix)
    plain = name.endswith(".npy")
    claims = a.properties.to_json()
    store = create_store(
        name,
        a.shape,
        a.dtype,
        checksum=checksum,
        structure="full" if plain else _structure(a),
        attributes={"properties": claims} if claims else None,
        overwrite=overwrite,
    )
    operations.copy_into(a, store, owner=f"save {name}", progress=progress)


def _structure(a: Matrix) -> str:
    """The structure of storage that the claims allow."""
    known = a.properties
    if a.shape[0] != a.shape[1]:
        return "full"
    if known.is_lower_triangular:
        return "lower"
    if known.is_upper_triangular:
        return "upper"
    if a.dtype.kind not in "fc":
        return "full"
    if known.is_symmetric:
        return "symmetric"
    if known.is_hermitian:
        return "hermitian"
    return "skew" if known.is_skew_symmetric else "full"


def reduced(a: Matrix) -> tuple[Any, ...]:
    """What pickle keeps of a matrix: the elements if they lie in RAM, else the path, under which it is opened again.

    Raises
    ------
    StoreError
        If it has neither, or would have changed by then.
    """
    store, claims = a.store, a.properties.claims
    if isinstance(store, ArrayStore):
        return _in_ram_again, (store.array, a.op, claims)
    if isinstance(store, (ZarrStore, NpyStore, ForeignStore)) and store.path is not None:
        if store.unfinished:
            raise StoreError(f"{a!r} is unfinished and cannot be pickled; wait for the work that writes it")
        if is_scratch(store.path):
            raise StoreError(f"{a!r} is a temporary result, gone with this process; save it and pickle pycauset.open(path)")
        return _opened_again, (os.fspath(store.path), a.op, claims, store.shape, store.dtype.str)
    raise StoreError(f"{a!r} cannot be pickled: it has no file to open again; save it and pickle pycauset.open(path)")


def _in_ram_again(array: Any, op: str, claims: int) -> Matrix:
    return Matrix._of_store(ArrayStore(array), op, claims)


def _opened_again(path: str, op: str, claims: int, shape: tuple[int, int], dtype: str) -> Matrix:
    store = open_store(path)
    if store.shape != shape or store.dtype.str != dtype:
        raise StoreNotFoundError(
            f"{path} is not the matrix that was pickled: it is {store.shape[0]} x {store.shape[1]} {store.dtype}, and was "
            f"{shape[0]} x {shape[1]} {dtype}; pickle it again"
        )
    return Matrix._of_store(store, op, claims)
