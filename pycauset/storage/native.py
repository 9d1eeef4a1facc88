"""The native store: a Zarr v3 folder with one uncompressed file per chunk, read and written directly.

Any Zarr reader opens it. Chunk files are replaced atomically, ``zarr.json`` comes last, and nothing unfinished has it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import CorruptTileError, ShapeError, StoreError, StoreNotFoundError, StorePermissionError
from pycauset.storage.base import (
    MIRRORED,
    cast_unsafe,
    check_structure,
    default_chunks,
    element_type,
    file_signature,
    shared_state,
    store_error,
    stored_chunk,
)
from pycauset.storage.chunkfile import ChunkFormat, Staged, read_chunk, write_chunk
from pycauset.storage.direct import ALIGNMENT, spare_buffer
from pycauset.storage.held import HeldFolder
from pycauset.storage.metadata import ArrayMetadata, check_attributes, fill_value, parse_document
from pycauset.storage.output import UNFINISHED, OutputFolder, fsync_folder, resumable_folder, write_durably
from pycauset.storage.staging import StagingStore, count_stored
from pycauset.tiling import Rect, chunk_grid, pieces, round_up

__all__ = ["ZarrStore"]


class ZarrStore(StagingStore):
    """A native matrix on disk. Made by :func:`open_store`, :func:`create_store` and :func:`scratch_store`.

    Reading and writing whole chunks moves data straight between the disk and an aligned array. A chunk that is missing
    from a finished matrix is an error, not zeros.
    """

    def __init__(
        self,
        folder: Path,
        meta: ArrayMetadata,
        *,
        output: OutputFolder | None = None,
        writable: bool = False,
        unfinished: bool = False,
    ) -> None:
        self._meta = meta
        self._root = os.fspath(output.path if output else folder)
        self._output = output
        self._unfinished = output is not None or unfinished
        self._moved_metadata = self._changed = False
        self.journalled = self._closed = self._restructured = False
        self._staged: dict[tuple[int, int], str] = {}
        self._direct = True
        self.path = folder
        self.shape, self.dtype, self.chunks, self.structure = meta.shape, meta.dtype, meta.chunks, meta.structure
        self.writable = writable or output is not None
        self.attributes = meta.attributes
        self._form = ChunkFormat(meta.chunks, meta.dtype, meta.packed, meta.checksum)
        self._grid = chunk_grid(meta.shape, meta.chunks)
        self._written = bytearray(math.prod(self._grid)) if output is not None else None
        real = os.path.realpath(folder)
        held = HeldFolder(self._root)
        self.identity = ("file", real, *held.inode)
        signature = None if output else file_signature(self.metadata_path)
        self._state = shared_state(real, signature)
        self._folder, self._incarnation = held, self._state.incarnation
        self._present = frozenset[str]() if meta.ours or output else frozenset(files_below(self._root))

    @classmethod
    def create(
        cls,
        path: Path,
        shape: tuple[int, int],
        dtype: DTypeLike,
        *,
        chunks: tuple[int, int] | None = None,
        checksum: bool = False,
        structure: str = "full",
        attributes: dict[str, Any] | None = None,
        overwrite: bool | None = None,
        resumable: bool = False,
    ) -> ZarrStore:
        """Begin a new matrix; it appears under ``path`` at :meth:`commit`.

        A ``resumable`` one outlives the process, for :meth:`reopen`; a journal makes it, and holds its lock meanwhile.
        """
        kind = element_type(dtype, "the output")
        grain = chunks or default_chunks(shape, kind)
        if min(grain) < 1 or min(shape) < 0:
            raise ShapeError(f"shape {shape} in chunks {grain}: shapes are at least 0, chunks at least 1")
        check_structure(structure, shape, grain, kind)
        check_attributes(attributes or {})
        meta = ArrayMetadata(
            shape=shape,
            dtype=kind,
            chunks=grain,
            structure=structure,
            checksum=checksum,
            packed=kind.kind == "b",
            fill=fill_value(kind, structure),
            attributes=dict(attributes or {}),
        )
        what = f"{path} ({shape[0]} x {shape[1]} {kind})"
        output = OutputFolder(path, stored_bytes(meta), what, overwrite=overwrite, resumable=resumable)
        store = cls(path, meta, output=output)
        if resumable:
            try:
                write_durably(os.path.join(store._root, UNFINISHED), meta.dump())
            except OSError as error:
                output.discard()
                raise store_error(error, f"creating {path}") from error
        return store

    @classmethod
    def reopen(cls, path: Path, *, overwrite: bool | None = None) -> ZarrStore:
        """Take up what a journal's process left: its new output for ``path``, or the matrix at ``path`` that it was changing.

        Nothing can be read or written until a journal has said what is in it.

        Raises
        ------
        StoreNotFoundError
            If nothing unfinished is there.
        CorruptTileError
            If the metadata are damaged.
        """
        hidden = resumable_folder(path)
        folder = hidden if hidden.is_dir() else path
        metadata = folder / UNFINISHED
        if folder == hidden and (folder / "zarr.json").is_file():  # it was being finished
            os.replace(folder / "zarr.json", metadata)
        try:
            meta = parse_document(metadata.read_bytes(), str(metadata))
        except FileNotFoundError:
            raise StoreNotFoundError(f"there is nothing unfinished at {path}") from None
        except OSError as error:
            raise store_error(error, f"reading {metadata}") from error
        if meta is None:
            raise CorruptTileError(f"{metadata} is not the metadata of a matrix that pycauset was writing; remove {folder}")
        if folder == hidden:
            what = f"{path} ({meta.shape[0]} x {meta.shape[1]} {meta.dtype})"
            store = cls(path, meta, output=OutputFolder(path, 0, what, overwrite=overwrite, reopen=True))
        else:
            store = cls(path, meta, writable=os.access(path, os.W_OK), unfinished=True)
            store._moved_metadata = store._changed = True
        store._closed = True
        return store

    @property
    def generation(self) -> int | None:
        return self._state.generation

    @property
    def checksum(self) -> bool:
        """Whether chunk files end in a crc32c checksum."""
        return self._meta.checksum

    @property
    def unfinished(self) -> bool:
        """Whether it is being written: not yet committed, or begun anew."""
        return self._unfinished

    @property
    def metadata_path(self) -> str:
        """Where the metadata are now."""
        finished = os.path.join(self._root, "zarr.json")
        return finished if os.path.exists(finished) else os.path.join(self._root, UNFINISHED)

    @property
    def metadata_generation(self) -> int:
        """How often the matrix has been finished, as its metadata count it."""
        return self._meta.generation

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        whole = all(n % c == 0 or n == size for n, c, size in zip(shape, self.chunks, self.shape, strict=True))
        fits = all(n % c == 0 for n, c in zip(shape, self.chunks, strict=True))
        if fits and self._form.can_be_direct() and np.dtype(dtype) == self.dtype and self.structure not in MIRRORED:
            return 0
        change = 0 if whole or not self.writable else round_up(math.prod(self.chunks) * self.dtype.itemsize, ALIGNMENT)
        return self._form.temporary_bytes + change

    # --- reading ---------------------------------------------------------------------------------------------------

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        self._check_open()
        try:
            self._read_pieces(rect, out)
        except StoreError:
            self._check_same(gone=False)  # then that is the reason
            raise
        self._check_same()  # afterwards: what was read is then known to come from one matrix

    def _read_pieces(self, rect: Rect, out: NDArray[Any]) -> None:
        height, width = self.chunks
        for i, j, part in pieces(rect, self.chunks):
            dest = out[part.r0 - rect.r0 : part.r1 - rect.r0, part.c0 - rect.c0 : part.c1 - rect.c0]
            local = part.shift(-i * height, -j * width)
            if stored_chunk(self.structure, i, j, self.chunks):
                self._read_chunk(i, j, local, dest, "full")
            elif self.structure in MIRRORED:
                self._read_chunk(j, i, local.T, dest, self.structure)
            else:
                dest[...] = 0

    def _read_chunk(self, i: int, j: int, part: Rect, dest: NDArray[Any], how: str) -> None:
        key = self._meta.key(i, j)
        path = f"{self._root}/{key}"
        staged = self._staged.get((i, j))
        if staged is not None:
            with contextlib.suppress(FileNotFoundError):  # then the journal has just put it in its place
                self._direct = read_chunk(staged, self._form, part, dest, how, direct=self._direct)
                return
        try:
            self._direct = read_chunk(path, self._form, part, dest, how, direct=self._direct)
        except StoreError:
            raise
        except FileNotFoundError as error:
            if self._meta.ours or key in self._present or not os.path.isdir(self._root):
                raise self._missing(path) from error
            dest[...] = self._meta.fill  # another writer leaves out chunks that hold nothing but the fill value
        except OSError as error:
            raise store_error(error, f"reading {path}") from error

    def _missing(self, path: str) -> StoreNotFoundError:
        if not os.path.isdir(self._root):
            return StoreNotFoundError(
                f"the matrix {self.path} has vanished (reading {path}); was it moved or deleted while in use?"
            )
        if self._unfinished:
            return StoreNotFoundError(f"chunk {path} of the unfinished matrix {self.path} has not been written yet")
        return StoreNotFoundError(
            f"chunk {path} is missing from the finished matrix {self.path}; restore the file or make the matrix again"
        )

    # --- writing ---------------------------------------------------------------------------------------------------

    def _write(self, rect: Rect, data: NDArray[Any]) -> None:
        if not self._unfinished:
            raise StorePermissionError(f"{self} is finished; call begin_write() before writing to it, and commit() after")
        self._check_open()
        self._check_same()
        if self.journalled:
            raise StorePermissionError(f"{self} has a journal, which must know of every tile: write by journal.write()")
        kept = False
        for i, j, part in pieces(rect, self.chunks):
            if not stored_chunk(self.structure, i, j, self.chunks):
                continue
            kept = self._changed = True
            piece = data[part.r0 - rect.r0 : part.r1 - rect.r0, part.c0 - rect.c0 : part.c1 - rect.c0]
            whole = self.chunk_rect(i, j)
            if part == whole:
                self._write_chunk(i, j, piece)
            else:
                with self._state.locks[(i * self._grid[1] + j) % len(self._state.locks)]:
                    self._change_chunk(i, j, whole, part, piece)
        if not kept:
            raise ShapeError(
                f"rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1} lie in the triangle that {self} does not store"
            )
        self._state.bump()

    def _change_chunk(self, i: int, j: int, whole: Rect, part: Rect, data: NDArray[Any]) -> None:
        """Read a chunk, change part of it, write it back. The caller holds the chunk's lock."""
        nbytes = whole.size * self.dtype.itemsize
        chunk = spare_buffer(nbytes)[:nbytes].view(self.dtype).reshape(whole.shape)
        if self._written is not None and not self._written[i * self._grid[1] + j]:
            chunk[...] = 0
        else:
            self._read_chunk(i, j, whole.shift(-whole.r0, -whole.c0), chunk, "full")
        cast_unsafe(chunk[part.shift(-whole.r0, -whole.c0).slices], data)
        self._write_chunk(i, j, chunk)

    def _write_chunk(self, i: int, j: int, data: NDArray[Any]) -> None:
        def write(path: str) -> Staged:
            return Staged(write_chunk(path, self._form, data, direct=self._direct), 0, 0.0)

        self._put_chunk(i, j, f"{self._root}/{self._meta.key(i, j)}", write)

    # --- life of an output -------------------------------------------------------------------------------------------

    def begin_write(self, *, reserve: bool = True) -> None:
        super().begin_write(reserve=reserve)
        self._check_same(gone=False)
        if self._unfinished:
            self._check_open()
            return
        try:
            os.rename(os.path.join(self._root, "zarr.json"), os.path.join(self._root, UNFINISHED))
            fsync_folder(self._root)
        except OSError as error:
            raise store_error(error, f"beginning to write {self.path}") from error
        self._unfinished = self._moved_metadata = True
        self._changed = False
        self._state.bump()

    def take_back(self) -> bool:
        """Whether a store from :meth:`reopen` is finished after all: its metadata are back in their place, as it knows them."""
        if not self._moved_metadata or os.path.exists(os.path.join(self._root, UNFINISHED)):
            return False
        metadata = os.path.join(self._root, "zarr.json")
        try:
            with open(metadata, "rb") as file:
                found = parse_document(file.read(), metadata)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise store_error(error, f"reading {metadata}") from error
        if found is None or found.dump() != self._meta.dump():
            return False
        self._unfinished = self._moved_metadata = self._changed = self._closed = False
        return True

    def commit(self, **attributes: Any) -> None:
        """Finish the output: check that every chunk was written, then write the metadata, then give it its name.

        The metadata and the folder are synced to disk, the chunks are not: after a power failure chunks that were
        written without O_DIRECT may be incomplete.

        Raises
        ------
        StoreError
            If chunks have never been written.
        """
        if self.journalled:
            raise StoreError(f"{self} has a journal: end the work by journal.finish()")
        self.finish(attributes)

    def finish(self, attributes: dict[str, Any], before: Callable[[str], None] | None = None) -> None:
        """:meth:`commit`, with a call ``before`` anything changes on disk that is given the metadata to be written."""
        check_attributes(attributes)
        self._check_open()
        self._check_same()
        if self._unfinished:
            self._check_complete()
        elif not self.writable:
            raise StorePermissionError(f"{self} is read-only")
        self._meta.attributes.update(attributes)
        self._meta.generation += 1
        text = self._meta.dump()
        if before is not None:
            before(text)
        try:
            if self._output is not None:
                self._output.reserve.release()
            metadata = os.path.join(self._root, "zarr.json")
            write_durably(metadata, text)
            if self._restructured:
                self._incarnation = self._state.replaced()  # other handles take the chunks for what they were
                self.trim()
            if self._output is not None:
                if self._output.resumable:
                    os.unlink(os.path.join(self._root, UNFINISHED))
                self._output.publish()
                self._root = os.fspath(self._output.target)
                self._incarnation = self._state.replaced()
                metadata = os.path.join(self._root, "zarr.json")
            elif self._moved_metadata:
                os.unlink(os.path.join(self._root, UNFINISHED))
            fsync_folder(self._root)
            self._state.signature = file_signature(metadata)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, f"finishing {self.path}") from error
        self._output = self._written = None
        self._unfinished = self._moved_metadata = self.journalled = self._restructured = False

    def _check_complete(self) -> None:
        if self._written is None or 0 not in self._written:
            return
        gaps = [
            (i, j)
            for i in range(self._grid[0])
            for j in range(self._grid[1])
            if not self._written[i * self._grid[1] + j] and stored_chunk(self.structure, i, j, self.chunks)
        ]
        if gaps:
            raise StoreError(
                f"{self} cannot be finished: {len(gaps)} of its chunks were never written, the first at chunk row {gaps[0][0]}, "
                f"column {gaps[0][1]}; write them or discard() the output"
            )

    def restructure(self, structure: str) -> None:
        """Keep only one triangle from now on, ``"lower"`` or ``"upper"``, zeros in the other.

        Its chunks are removed when the store is finished, after the metadata that do without them: until then a journal may have
        to take them up again.

        Raises
        ------
        StorePermissionError
            If the store is finished.
        """
        check_structure(structure, self.shape, self.chunks, self.dtype)
        if not self._unfinished:
            raise StorePermissionError(f"{self} is finished; call begin_write() before changing it")
        self._check_open()
        self._meta.restructure(structure)
        self.structure = structure
        self._restructured = True
        self._state.bump()

    def trim(self) -> None:
        """Remove the files of chunks that the structure does not keep."""
        rows, cols = self._grid
        for i, j in ((i, j) for i in range(rows) for j in range(cols)):
            if not stored_chunk(self.structure, i, j, self.chunks):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.chunk_path(self._meta.key(i, j)))

    def discard(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None
        elif self._moved_metadata and not self._changed and self._folder.is_at(self._root):
            with contextlib.suppress(OSError):  # nothing was overwritten: the matrix is as it was
                os.rename(os.path.join(self._root, UNFINISHED), os.path.join(self._root, "zarr.json"))
        self._unfinished = self._moved_metadata = self.journalled = False
        self._staged.clear()

    def close(self) -> None:
        """Release what the store holds; an unfinished output is discarded, unless a journal keeps it for resuming."""
        if self.journalled or self._closed:
            self.suspend()
        else:
            self.discard()


def stored_bytes(meta: ArrayMetadata) -> int:
    """Disk space of all chunks that a store with this metadata keeps."""
    rows, cols = chunk_grid(meta.shape, meta.chunks)
    form = ChunkFormat(meta.chunks, meta.dtype, meta.packed, meta.checksum)
    return count_stored(meta.structure, rows, cols, meta.chunks) * round_up(form.file_bytes, ALIGNMENT)


def files_below(root: str) -> list[str]:
    """All files of a folder, relative to it: the chunks that another writer's array had when it was opened."""
    found: list[str] = []
    for folder, _, names in os.walk(root):
        base = os.path.relpath(folder, root)
        found.extend(name if base == "." else f"{base}/{name}" for name in names)
    return found
