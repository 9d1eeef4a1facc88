"""Matrices on disk: opening and saving them."""

from __future__ import annotations

import os
from typing import Any

from pycauset import operations
from pycauset.matrix import Matrix, asmatrix
from pycauset.storage import create_store, open_store

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
        If it has more than two dimensions, or elements that are no numbers.

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
    The claims are stored with it.

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

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npy")
    >>> save(path, [[1.0, 2.0]])
    >>> np.load(path)
    array([[1., 2.]])
    """
    a = asmatrix(matrix)
    plain = os.fspath(path).endswith(".npy")
    claims = a.properties.to_json()
    store = create_store(
        path,
        a.shape,
        a.dtype,
        checksum=checksum,
        structure="full" if plain else _structure(a),
        attributes={"properties": claims} if claims else None,
        overwrite=overwrite,
    )
    operations.copy_into(a, store, owner=f"save {os.fspath(path)}", progress=progress)


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
