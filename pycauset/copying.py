"""Copying a matrix on disk to another format, element type or chunk shape, piece by piece."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from pycauset.errors import DtypeError, OverlapError
from pycauset.matrix import Matrix
from pycauset.operations import copy_into
from pycauset.progress import ProgressOption
from pycauset.storage import TileStore, create_store, element_type

__all__ = ["copy_store"]


def copy_store(
    source: TileStore,
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    chunks: tuple[int, int] | None = None,
    checksum: bool = False,
    overwrite: bool = False,
    progress: ProgressOption = None,
) -> TileStore:
    """Copy a store to a new file. A Zarr copy keeps structure and attributes; a ``.npy`` file can hold neither.

    Memory is taken within the limits of the settings, at most about 256 MB.

    Parameters
    ----------
    source : TileStore (m, n)
    path : path-like
        A ``.npy`` file by its suffix, else a Zarr folder.
    dtype : dtype, optional
        Element type of the copy; values are cast as by ``astype``.
    chunks : (int, int), optional
        Of the copy, if it is a Zarr folder.
    checksum, overwrite : bool
        As in :func:`pycauset.storage.create_store`.
    progress : callable, bool or None

    Returns
    -------
    TileStore (m, n)
        Committed.

    Raises
    ------
    DtypeError
        If complex numbers would lose their imaginary part.
    OverlapError
        If the path is the source's own.
    StoreError
        If the copy cannot be created or written, or the source not be read.
    MemoryLimitError
        If not even two chunks fit the limit.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pycauset.storage import as_store
    >>> path = Path(tempfile.mkdtemp()) / "a.zarr"
    >>> copy_store(as_store(np.eye(4)), path, dtype="float32").dtype
    dtype('float32')
    """
    target_path = Path(path).expanduser()
    kind = source.dtype if dtype is None else element_type(dtype, "the copy")
    if source.dtype.kind == "c" and kind.kind != "c":
        raise DtypeError(f"{source} cannot be copied as {kind}: the imaginary part would be lost; choose a complex type")
    if source.path is not None and os.path.realpath(source.path) == os.path.realpath(target_path):
        raise OverlapError(f"{target_path} is the matrix to copy itself; give the copy another name")
    options: dict[str, Any] = {}
    if target_path.suffix != ".npy":
        square = chunks is None or chunks[0] == chunks[1]
        options = {
            "structure": source.structure if square or source.structure in ("lower", "upper") else "full",
            "attributes": source.attributes,
        }
    with create_store(
        target_path, source.shape, kind, chunks=chunks, checksum=checksum, overwrite=overwrite, **options
    ) as target:
        copy_into(Matrix(source), target, owner=f"copying to {target_path.name}", progress=progress)
    return target
