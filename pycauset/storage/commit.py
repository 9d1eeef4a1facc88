"""Group commits: tiles on their way from beside their places, through the journal, into their places.

Any number of threads write; the one that finds enough tiles ready commits them, while the others go on. In a commit each step
is durable before the next begins: contents, names, records; only then chunks are renamed over older ones. So whatever a record
says is on disk, and what a record does not say has overwritten nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray

from pycauset.errors import ShapeError, StoreError, StoreFullError
from pycauset.storage.base import store_error
from pycauset.storage.journalfile import JournalFile
from pycauset.storage.native import ZarrStore
from pycauset.storage.output import fsync_folder
from pycauset.storage.staging import StagedChunk
from pycauset.tiling import Rect

__all__ = ["COMMIT_BYTES", "COMMIT_SECONDS", "GroupCommit"]

COMMIT_BYTES: Final = 256 << 20
"""Finished tiles are recorded in groups of at least so many bytes,"""
COMMIT_SECONDS: Final = 5.0
"""or when the first of the group has waited so long."""
_BACKLOG: Final = 2  # groups; then writers wait for the disk
_SYNCS: Final = 4  # threads that wait for the disk, each for one file: more gain little time and cost the kernels theirs


@dataclass(slots=True)
class _Tile:
    """A generation of a tile on its way."""

    rect: Rect
    generation: int
    missing: set[tuple[int, int]]
    chunks: dict[tuple[int, int], StagedChunk] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        checksums = {chunk.key: f"{chunk.checksum:08x}" for chunk in self.chunks.values()}
        return {"tile": self.rect, "generation": self.generation, "chunks": checksums}


# Syncs and renames end in these names and in journalfile._append; tests replace them.


def _sync(path: str) -> None:
    if os.path.isdir(path):
        fsync_folder(path)
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename(source: str, target: str) -> None:
    os.replace(source, target)


class GroupCommit:
    """The tiles of one store and one journal.

    Attributes
    ----------
    safe : dict
        The generation of each tile that is on disk and on record.
    recorded, commits, nbytes, syncs, renames, seconds_commits, seconds_checksums
        What has been done; seconds are summed over threads. A commit's records take one more sync.
    """

    def __init__(self, store: ZarrStore, file: JournalFile) -> None:
        self.store, self._file = store, file
        self.safe: dict[Rect, int] = {}
        self.recorded = self.commits = self.nbytes = self.syncs = self.renames = 0
        self.seconds_commits = self.seconds_checksums = 0.0
        self._changed = threading.Condition()
        self._newest: dict[Rect, int] = {}  # complete, on record or not yet
        self._owner: dict[tuple[int, int], Rect] = {}
        self._open: dict[Rect, _Tile] = {}
        self._ready: dict[Rect, _Tile] = {}
        self._ready_bytes, self._since = 0, 0.0
        self._committing = False
        self._failed: BaseException | None = None
        self._folders: set[str] = set()

    @property
    def failed(self) -> bool:
        """Whether a commit went wrong; nothing more is written then."""
        return self._failed is not None

    def take_up(self, safe: dict[Rect, int]) -> None:
        """Start from what an earlier process has on record."""
        self.safe, self._newest = dict(safe), dict(safe)
        for rect in safe:
            for at, key in self.store.stored_chunks(rect):
                self._owner[at] = rect
                self._folders.add(os.path.dirname(self.store.chunk_path(key)))

    def write(self, tile: Rect, generation: int, part: Rect, data: NDArray[Any]) -> None:
        """See :meth:`Journal.write`."""
        needed = self._check(tile, generation, part)
        try:
            staged = self.store.stage(part, data, generation)
        except StoreFullError:
            self.settle(force=True)  # chunks that replace others give their space back
            staged = self.store.stage(part, data, generation)
        overtaken: list[StagedChunk] = []
        with self._changed:
            work = self._open.get(tile)
            if work is None or work.generation < generation:
                overtaken += work.chunks.values() if work is not None else ()
                work = self._open[tile] = _Tile(tile, generation, needed)
            for chunk in staged:
                work.chunks[chunk.at] = chunk
                work.missing.discard(chunk.at)
                self._owner[chunk.at] = tile
                self.store.show(chunk)
                self.seconds_checksums += chunk.seconds
            if not work.missing:
                del self._open[tile]
                older = self._ready.pop(tile, None)
                if older is not None:  # overtaken before it was recorded
                    overtaken += older.chunks.values()
                    self._ready_bytes -= self._bytes_of(older)
                if not self._ready:
                    self._since = time.monotonic()
                self._newest[tile] = generation
                self._ready[tile] = work
                self._ready_bytes += self._bytes_of(work)
        for chunk in overtaken:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(chunk.path)
        self.settle()

    def _bytes_of(self, work: _Tile) -> int:
        return len(work.chunks) * self.store.chunks[0] * self.store.chunks[1] * self.store.dtype.itemsize

    def _check(self, tile: Rect, generation: int, part: Rect) -> set[tuple[int, int]]:
        """Refuse what the journal could not keep; the tile's stored chunks."""
        if tile.intersect(part) != part:
            raise ShapeError(f"rows {part.r0}:{part.r1}, columns {part.c0}:{part.c1} do not lie in the tile {tuple(tile)}")
        needed = dict(self.store.stored_chunks(tile))
        if not needed:
            raise ShapeError(f"tile {tuple(tile)} lies in the triangle that {self.store} does not store")
        with self._changed:
            work = self._open.get(tile)
            newest = max(self._newest.get(tile, 0), work.generation - 1 if work is not None else 0)
            if generation <= newest:
                raise StoreError(
                    f"generation {generation} of tile {tuple(tile)} of {self.store} comes too late: generation {newest} is there"
                )
            for at, key in needed.items():
                if self._owner.get(at, tile) != tile:
                    raise StoreError(f"chunk {key} of {self.store} belongs to tile {tuple(self._owner[at])}, not {tuple(tile)}")
        return set(needed)

    def settle(self, *, force: bool = False) -> None:
        """Record the tiles that are ready, if there are enough of them; one thread at a time does so, without the lock."""
        while True:
            with self._changed:
                if self._failed is not None:
                    raise StoreError(f"the journal {self._file.path} could not be written: {self._failed}") from self._failed
                if self._committing:
                    if not force and self._ready_bytes < _BACKLOG * COMMIT_BYTES:
                        return
                    self._changed.wait()
                    continue
                due = self._ready_bytes >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS
                if not self._ready or not (force or due):
                    return
                group = list(self._ready.values())
                self._ready, self._ready_bytes = {}, 0
                self._committing = True
            try:
                self._commit(group)
            except BaseException as error:
                self._failed = error
                if isinstance(error, OSError) and not isinstance(error, StoreError):
                    raise store_error(error, f"recording tiles of {self.store}") from error
                raise
            finally:
                with self._changed:
                    self._committing = False
                    self._changed.notify_all()

    def _commit(self, group: list[_Tile]) -> None:
        start = time.perf_counter()
        chunks = [chunk for work in group for chunk in work.chunks.values()]
        self._sync_all([chunk.path for chunk in chunks])
        self._file.append(work.record() for work in group)
        self.recorded += len(group)
        self.store.changing()
        for chunk in chunks:
            _rename(chunk.path, self.store.chunk_path(chunk.key))
        with self._changed:
            self.renames += len(chunks)
            for chunk in chunks:
                self.store.settled(chunk)
            for work in group:
                self.safe[work.rect] = work.generation
                self.nbytes += self._bytes_of(work)
            self.commits += 1
            self.seconds_commits += time.perf_counter() - start

    def _sync_all(self, paths: list[str]) -> None:
        """Make files durable, and their names, all at once: the file system then does it in few transactions."""
        folders = {os.path.dirname(path) for path in paths}
        root = os.path.normpath(self.store.chunk_path(""))
        above: set[str] = set()
        for folder in folders - self._folders:  # perhaps new themselves
            while folder != root:
                folder = os.path.dirname(folder)
                above.add(folder)
        self._folders |= folders
        names = [*paths, *(folders | above)]
        self.syncs += len(names)
        with ThreadPoolExecutor(min(_SYNCS, len(names)), "pycauset-sync") as pool:
            for _ in pool.map(_sync, names):
                pass

    def close(self) -> None:
        """All tiles are there: make the renames durable too.

        Raises
        ------
        StoreError
            If parts of a tile never came.
        """
        for work in self._open.values():
            raise StoreError(
                f"tile {tuple(work.rect)} of {self.store} is incomplete: {len(work.missing)} of its chunks were never written"
            )
        for folder in sorted(self._folders):
            _sync(folder)
        self.syncs += len(self._folders)
