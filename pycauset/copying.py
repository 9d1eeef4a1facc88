"""Copying a matrix on disk to another format, element type or chunk shape, piece by piece."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import DtypeError, OverlapError
from pycauset.progress import ProgressOption, reporter
from pycauset.storage import TileStore, create_store, element_type
from pycauset.tiling import Rect, ceil_div, round_up

__all__ = ["copy_store"]

_WORKERS: Final = 2  # one reads while the other writes
_PIECE_BYTES: Final = 32 << 20


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

    About 64 MB of memory is used, more if a chunk alone is larger.

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

    Examples
    --------
    >>> import tempfile
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
        pieces = list(_pieces(source, target))
        total = float(sum(piece.size for piece in pieces) * source.dtype.itemsize)
        with reporter(progress, f"copying to {target_path.name}", total, unit="byte") as report:
            _copy(source, target, pieces, report)
        target.commit()
    return target


def _pieces(source: TileStore, target: TileStore) -> Iterator[Rect]:
    """Whole chunks of the target, as many side by side as memory allows, at least as tall as the source's."""
    rows, cols = target.shape
    height, width = min(target.chunks[0], rows), min(target.chunks[1], cols)
    if not rows or not cols:
        return
    item = max(source.dtype.itemsize, target.dtype.itemsize)
    room = max(1, _PIECE_BYTES // item)
    # Both stores' chunks whole, if that fits: no chunk is read or written twice.
    tall = min(rows, round_up(min(source.chunks[0], rows), height))
    wide = min(cols, round_up(min(source.chunks[1], cols), width))
    if tall * width <= room:
        height = tall
    if height * wide <= room:
        width = min(cols, wide * max(1, room // (height * wide)))
    elif height * width <= room:
        width = min(cols, width * max(1, room // (height * width)))
    for i in range(ceil_div(rows, height)):
        for j in range(ceil_div(cols, width)):
            rect = Rect(i * height, min((i + 1) * height, rows), j * width, min((j + 1) * width, cols))
            if target.structure == "full" or _kept(target, rect):
                yield rect


def _kept(store: TileStore, rect: Rect) -> bool:
    """Whether a store of one triangle keeps any of a rectangle."""
    return rect.r1 > rect.c0 if store.structure != "upper" else rect.c1 > rect.r0


def _copy(source: TileStore, target: TileStore, pieces: list[Rect], report: Any) -> None:
    stop = threading.Event()
    local = threading.local()
    most = max((piece.size for piece in pieces), default=0)

    def move(rect: Rect) -> int:
        if stop.is_set():
            return 0
        buffer: NDArray[Any] | None = getattr(local, "buffer", None)
        if buffer is None:
            buffer = local.buffer = np.empty(most, source.dtype)
        tile = buffer[: rect.size].reshape(rect.shape)
        source.read(rect, tile)
        target.write(rect, tile)
        return tile.nbytes

    done = 0
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="pycauset-copy") as pool:
        moves = [pool.submit(move, piece) for piece in pieces]
        try:
            for finished in as_completed(moves):
                done += finished.result()
                report(float(done))
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
