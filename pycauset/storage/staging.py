"""Chunks beside their places: how a journal's tiles reach a native store.

A journal must not overwrite a chunk before its record is durable, so the new content waits in a file of its own
(``KEY.gGENERATION.pending``), where readers already see it, and is renamed afterwards.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pycauset.errors import DtypeError, ShapeError, StoreError, StoreFullError, StoreNotFoundError
from pycauset.storage.base import SharedState, TileStore, element_type, store_error, stored_chunk
from pycauset.storage.chunkfile import ChunkFormat, Staged, chunk_checksum, stage_chunk
from pycauset.storage.direct import ALIGNMENT
from pycauset.storage.held import HeldFolder
from pycauset.storage.metadata import ArrayMetadata
from pycauset.storage.output import OutputFolder
from pycauset.tiling import Rect, pieces, round_up

__all__ = ["StagedChunk", "StagingStore", "count_stored"]


class StagedChunk(NamedTuple):
    """A chunk that lies beside its place, until a journal puts it there."""

    at: tuple[int, int]
    key: str
    path: str
    """The file that it lies in now."""
    checksum: int
    seconds: float
    """Spent on the checksum."""


class StagingStore(TileStore):
    """The side of a native store that a journal sees; :class:`~pycauset.storage.native.ZarrStore` is the whole of it.

    Attributes
    ----------
    journalled : bool
        A journal must know of every write: only :meth:`stage` writes.
    """

    journalled: bool
    _meta: ArrayMetadata
    _form: ChunkFormat
    _root: str
    _folder: HeldFolder
    _incarnation: int
    _grid: tuple[int, int]
    _state: SharedState
    _output: OutputFolder | None
    _written: bytearray | None
    _staged: dict[tuple[int, int], str]
    _direct: bool
    _changed: bool
    _unfinished: bool
    _closed: bool

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(
                f"{self} is unfinished, a mixture of old and new tiles; run the call that was writing it again: "
                "it goes on where its journal ends"
            )

    def _check_same(self, *, gone: bool = True) -> None:
        """Refuse to go on in a folder that has taken this one's name; or, unless ``gone`` is False, in none at all."""
        if self._output is not None:  # nobody else knows its name yet
            return
        same = self._folder.is_at(self._root) and self._incarnation == self._state.incarnation
        if same or (same is None and not gone):
            return
        what = "moved or deleted" if same is None else "replaced"
        raise StoreNotFoundError(
            f"the matrix {self.path} ({self.shape[0]} x {self.shape[1]} {self.dtype}) was {what} while in use; "
            "open it again, and leave it in its place until the work is done"
        )

    def chunk_rect(self, i: int, j: int) -> Rect:
        """The elements of a chunk."""
        (height, width), (rows, cols) = self.chunks, self.shape
        return Rect(i * height, min((i + 1) * height, rows), j * width, min((j + 1) * width, cols))

    def stored_chunks(self, rect: Rect) -> Iterator[tuple[tuple[int, int], str]]:
        """Index and key of each chunk that is kept on disk of those that ``rect`` is made of.

        Raises
        ------
        ShapeError
            If ``rect`` cuts a chunk.
        """
        for i, j, part in pieces(rect, self.chunks):
            if part != self.chunk_rect(i, j):
                raise ShapeError(
                    f"rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1} of {self} cut the chunk at row {part.r0}, column "
                    f"{part.c0}; a journal takes whole chunks of {self.chunks[0]} x {self.chunks[1]}"
                )
            if stored_chunk(self.structure, i, j, self.chunks):
                yield (i, j), self._meta.key(i, j)

    def chunk_path(self, key: str) -> str:
        """The file of a chunk."""
        return f"{self._root}/{key}"

    def staged_path(self, key: str, generation: int) -> str:
        """The file in which a generation of a chunk waits for its record in the journal."""
        return f"{self._root}/{key}.g{generation}.pending"

    def stage(self, part: Rect, data: NDArray[Any], generation: int) -> list[StagedChunk]:
        """Write whole chunks beside their places; :meth:`show` lets readers see them there. Any number of threads may do so."""
        self._check(part, data, "data")
        self._check_open()
        self._check_same()
        element_type(data.dtype, "data")
        if data.dtype.kind == "c" and self.dtype.kind != "c":
            raise DtypeError(f"{data.dtype} data cannot be written to {self}: the imaginary part would be lost; take .real first")
        staged = []
        for (i, j), key in self.stored_chunks(part):
            rect = self.chunk_rect(i, j)
            piece = data[rect.shift(-part.r0, -part.c0).slices]

            def write(path: str, piece: NDArray[Any] = piece) -> Staged:
                return stage_chunk(path, self._form, piece, direct=self._direct)

            path = self.staged_path(key, generation)
            done = self._put_chunk(i, j, path, write)
            staged.append(StagedChunk((i, j), key, path, done.checksum, done.seconds))
        return staged

    def show(self, chunk: StagedChunk) -> None:
        """Let readers see a chunk where it is staged."""
        self._staged[chunk.at] = chunk.path
        self._state.bump()

    def changing(self) -> None:
        """Chunks are about to be replaced: a matrix that was there before is no longer what it was."""
        self._changed = True

    def settled(self, chunk: StagedChunk) -> None:
        """A staged chunk has taken its place."""
        if self._staged.get(chunk.at) == chunk.path:
            del self._staged[chunk.at]

    def checksum_of(self, path: str) -> int | None:
        """The checksum of a chunk file, staged or in its place; ``None`` if it is missing or damaged."""
        try:
            return chunk_checksum(path, self._form, direct=self._direct)
        except OSError as error:
            raise store_error(error, f"reading {path}") from error

    def resume(self, present: Iterable[tuple[int, int]]) -> None:
        """Open a store from :meth:`reopen`: a journal vouches for these chunks, and in place for all others too."""
        vouched = list(present)
        self._changed = bool(vouched)  # without a record nothing has been replaced
        if self._written is not None and self._output is not None:
            self._written = bytearray(math.prod(self._grid))
            for i, j in vouched:
                self._written[i * self._grid[1] + j] = 1
            missing = count_stored(self.structure, *self._grid, self.chunks) - sum(self._written)
            self._output.set_aside(missing * round_up(self._form.file_bytes, ALIGNMENT))
        self._closed = False

    def suspend(self) -> None:
        """Leave an unfinished store as it is, for :meth:`reopen`."""
        if self._output is not None:
            self._output.reserve.close()
        self.journalled, self._closed = False, self._unfinished
        self._staged.clear()

    def _put_chunk(self, i: int, j: int, path: str, write: Callable[[str], Staged]) -> Staged:
        """Write a chunk's file, after making its folder or giving up reserved space if need be."""
        try:
            try:
                staged = write(path)
            except FileNotFoundError:
                self._make_folders(self._meta.key(i, j))
                staged = write(path)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            typed = store_error(error, f"writing {path}")
            room = round_up(self._form.file_bytes, ALIGNMENT)
            if not (isinstance(typed, StoreFullError) and self._output and self._output.reserve.give_way(room)):
                raise typed from error
            return self._put_chunk(i, j, path, write)
        self._direct = staged.direct
        if self._written is not None:
            index = i * self._grid[1] + j
            if not self._written[index]:
                self._written[index] = 1
                if self._output is not None:
                    self._output.reserve.landed(round_up(self._form.file_bytes, ALIGNMENT))
        return staged

    def _make_folders(self, key: str) -> None:
        """The folders of a chunk file, but never the store's own, which somebody may just have removed."""
        folder = self._root
        for name in key.split("/")[:-1]:
            folder = f"{folder}/{name}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)


def count_stored(structure: str, rows: int, cols: int, chunks: tuple[int, int]) -> int:
    """How many chunks of a grid a structure keeps.

    Examples
    --------
    >>> count_stored("lower", 4, 4, (10, 10)), count_stored("full", 4, 5, (10, 10))
    (10, 20)
    """
    if structure == "full":
        return rows * cols
    height, width = chunks
    if structure == "upper":
        return sum(cols - min(cols, i * height // width) for i in range(rows))
    return sum(min(cols, -(-(i + 1) * height // width)) for i in range(rows))
