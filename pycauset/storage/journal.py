"""Journals: a long operation survives a kill, and goes on where it stopped.

``NAME.journal`` beside an output says what was asked (operation, arguments, operands, versions), how it runs (plan, device) and
which tiles are final. Every tile is first written beside its place, then recorded, then put there, each step durable before
the next: so a kill at any moment leaves for every tile exactly the generation that the journal tells, be the output new or the
operand itself. docs/internals/Journal.md has the format and the order of steps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import ConfigError, JournalBusyError, JournalError, StoreError, StoreNotFoundError
from pycauset.storage.base import TileStore
from pycauset.storage.commit import GroupCommit
from pycauset.storage.identity import differences, operand_identity, plain, versions
from pycauset.storage.journalfile import JournalFile, read_journal, remedy
from pycauset.storage.native import ZarrStore
from pycauset.storage.output import UNFINISHED, journal_path, resumable_folder, sweep
from pycauset.storage.recovery import (
    Resume,
    clean_up,
    last_records,
    look,
    mark,
    overwritten,
    recover,
    refuse_mixture,
    remove_orphans,
)
from pycauset.tiling import Rect

__all__ = ["Journal", "JournalStatistics", "Resume", "check_resume", "open_journal", "operand_identity", "read_journal"]


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """What a journal has done in this process.

    ``seconds`` is the time spent on checksums and commits (syncs, records, renames), summed over threads. ``bytes`` have been
    checksummed, written and synced; ``syncs`` counts files and folders, and one of the journal itself for each commit.
    """

    tiles_reused: int
    records: int
    commits: int
    syncs: int
    renames: int
    bytes: int
    seconds: float
    seconds_checksums: float
    seconds_recovery: float


def open_journal(
    path: str | os.PathLike[str], request: Mapping[str, Any], *, resume: Resume = True, replaceable: bool = False
) -> Journal:
    """The journal of work on ``path``: a new one, or the one that an interrupted run of the same work left.

    Parameters
    ----------
    path : path-like
        The output, or the matrix that is overwritten in place: a Zarr folder.
    request : mapping
        ``operation``, ``arguments``, ``operands`` (see :func:`operand_identity`), ``threads`` and whatever else decides the
        result's bits. Versions of pycauset, Python, NumPy, SciPy and its BLAS are added. Work goes on only if all is equal.
    resume : bool or "restart"
        True goes on where an interrupted run stopped, if there was one; False refuses if there was one; ``"restart"`` removes
        what it left and starts over.
    replaceable : bool
        Nothing of a matrix at ``path`` is needed: it is no operand, or the caller can make it again. ``"restart"`` then takes it
        even if tiles of it have been overwritten. It stays unfinished until the new work ends.

    Returns
    -------
    Journal
        Locked; use it as a context manager, so that it is suspended when nobody finished or discarded it.

    Raises
    ------
    JournalBusyError
        If another process is at it.
    JournalError
        If the journal is of other work (the message has the old and new values), damaged, or in the way.
    ConfigError, StoreNotFoundError
        If ``path`` cannot have a journal.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "b.zarr"
    >>> with open_journal(path, {"operation": "double", "arguments": {}, "operands": {}}) as journal:
    ...     store = journal.new_output((4, 4), "float64")
    ...     journal.begin({"tile": 4})
    ...     tile = Rect(0, 4, 0, 4)
    ...     if journal.generation(tile) < 1:
    ...         journal.write(tile, 1, tile, 2 * np.eye(4))
    ...     journal.finish()
    >>> sorted(entry.name for entry in path.parent.iterdir())
    ['b.zarr']
    """
    target = Path(path).expanduser().absolute()
    resume = check_resume(resume)
    if target.suffix == ".npy":
        raise ConfigError(f"{target}: only a Zarr folder can have a journal, tiles of a .npy file cannot be replaced atomically")
    if not target.parent.is_dir():
        raise StoreNotFoundError(f"cannot create {target}: there is no folder {target.parent}; make it first")
    asked = plain({**request, "versions": {**versions(), **request.get("versions", {})}})
    name = journal_path(target)
    try:
        file = JournalFile(name, mixture=False if replaceable else None)
    except JournalBusyError:
        raise
    except JournalError:
        if resume != "restart":
            raise
        if not replaceable:
            refuse_mixture(target, name)
        file = JournalFile(name, discard=True)
    try:
        while True:
            finished, resumed = look(file, target, asked, resume, replaceable=replaceable)
            if not finished or resumed:
                break
            file.remove()  # finished long ago, and not what is asked for now
            file = JournalFile(name)
        if finished:
            clean_up(target)
            sweep(target)
            file.remove()
        elif not file.header:
            shutil.rmtree(resumable_folder(target), ignore_errors=True)
        restarted = replaceable and not (finished or resumed) and (resume == "restart" or not file.made)
        return Journal(file, target, asked, finished=finished, resumed=resumed, replaceable=replaceable, restarted=restarted)
    except BaseException:
        if file.made and not file.header:
            file.remove()
        file.close()
        raise


def check_resume(resume: Any) -> Resume:
    """``resume`` as it may be.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> check_resume(True), check_resume("restart")
    (True, 'restart')
    """
    if isinstance(resume, (bool, np.bool_)):
        return bool(resume)
    if isinstance(resume, str) and resume == "restart":
        return "restart"
    raise ConfigError(f'resume={resume!r}; it must be True, False or "restart"')


class Journal:
    """The journal of one output; made by :func:`open_journal`. A ``TileJournal`` for operands.

    The order of calls: :meth:`new_output` or :meth:`in_place`, :meth:`begin`, any number of :meth:`write` from any threads,
    then :meth:`finish`; or :meth:`discard` when the operation itself failed; or :meth:`suspend` (leaving a ``with`` block
    does it) when it was interrupted.

    Attributes
    ----------
    path : pathlib.Path
        The journal's file.
    resumed : bool
        An interrupted run is taken up: go by its :attr:`plan`.
    finished : bool
        The interrupted run had finished after all: the result is under its name, the journal is gone, and there is nothing to do.
    complete : bool
        All tiles are on record as safe, and nothing else is needed any more to :meth:`finish`.
    plan : dict or None
        The plan on record, as JSON gives it back.
    header : dict
        The first record: ``request``, ``plan``, ``output``, ``in_place`` and what else :meth:`begin` was given.
    """

    def __init__(
        self,
        file: JournalFile,
        target: Path,
        request: dict[str, Any],
        *,
        finished: bool,
        resumed: bool,
        replaceable: bool,
        restarted: bool,
    ) -> None:
        self.path, self.target = file.path, target
        self.resumed, self.finished = resumed and not finished, finished
        self.header = file.header
        self.plan: dict[str, Any] | None = file.header.get("plan")
        self._file, self._request = file, request
        self._records = last_records(file.records)
        self._group: GroupCommit | None = None
        self._replaceable, self._restarted = replaceable, restarted
        self.complete = any("complete" in record for record in file.records)
        self._begun = self._in_place = self._mixture = False
        self._reused, self._seconds_recovery = 0, 0.0

    # --- the output --------------------------------------------------------------------------------------------------

    @property
    def store(self) -> ZarrStore:
        """The output."""
        return self._commits.store

    @property
    def _commits(self) -> GroupCommit:
        if self._group is None:
            raise StoreError(f"the journal {self.path} has no output yet; call new_output() or in_place()")
        return self._group

    def new_output(
        self,
        shape: tuple[int, int],
        dtype: DTypeLike,
        *,
        chunks: tuple[int, int] | None = None,
        checksum: bool = False,
        structure: str = "full",
        attributes: dict[str, Any] | None = None,
        overwrite: bool | None = None,
    ) -> ZarrStore:
        """The output under construction, as :func:`create_store` makes it; of a resumed run, with all tiles that are safe.

        Raises
        ------
        JournalError
            If the resumed run's output is of another shape, element type or structure.
        StoreExistsError, StoreFullError, StorePermissionError
        """
        if not self.resumed:
            store = ZarrStore.create(
                self.target,
                (int(shape[0]), int(shape[1])),
                dtype,
                chunks=chunks,
                checksum=checksum,
                structure=structure,
                attributes=attributes,
                overwrite=overwrite,
                resumable=True,
            )
            self._group = GroupCommit(store, self._file)
            return store
        store = ZarrStore.reopen(self.target, overwrite=overwrite)
        self._group = GroupCommit(store, self._file)
        asked = {"shape": list(shape), "dtype": np.dtype(dtype).name, "structure": structure, "chunks": chunks and list(chunks)}
        found = _describe(store)
        changed = [text for key, value in asked.items() if value for text in differences(found[key], value, key)]
        if changed:
            raise JournalError(
                f"the unfinished output of the journal {self.path} does not fit: {'; '.join(changed)}; {self.remedy}"
            )
        self._take_up(in_place=False)
        return store

    def in_place(self, store: TileStore) -> ZarrStore:
        """Work on a matrix that is there: one that :func:`open_store` or, of a resumed run, :meth:`ZarrStore.reopen` gave.

        Raises
        ------
        ConfigError
            If it is not a Zarr folder, or not the one of this journal.
        CorruptTileError
            If a tile on record is damaged.
        JournalError
            If tiles have been written that the journal does not know.
        """
        if not isinstance(store, ZarrStore) or os.path.realpath(self.target) != store.identity[1]:
            raise ConfigError(f"the journal {self.path} is of {self.target}, a Zarr folder; {store} cannot have it")
        # `look` gives a matrix that no tile has replaced its metadata back; whoever opened it before does not know.
        mixture = store.unfinished and not self.resumed and not store.take_back()
        if mixture and not (self.target / UNFINISHED).is_file():
            raise JournalError(f"{store} was unfinished when it was opened, and is not any more; open it again")
        if mixture and not self._restarted:
            raise JournalError(f"{store} is unfinished and has no journal that tells what is in it; make it again")
        self._group, self._in_place = GroupCommit(store, self._file), True
        if self.resumed:
            self._take_up(in_place=True)
        elif mixture:
            remove_orphans(store.chunk_path(""), None)
            store.resume(())
            store.changing()
            self._mixture = True
        return store

    def _take_up(self, *, in_place: bool) -> None:
        start = time.perf_counter()
        if self.header["in_place"] is not in_place:
            raise self.unusable(f"in_place = {self.header['in_place']}, but now the work is not done this way")
        changed = differences(self.header["output"], _describe(self.store), "output")
        if changed:
            raise self.unusable("; ".join(changed))
        if not self.store.unfinished:
            self.store.begin_write()  # killed just before it did so itself
        started: int = self.header["started_ns"]
        mixture = not self._replaceable
        safe = recover(self.store, self._records, in_place=in_place, started_ns=started, mixture=mixture)
        if overwritten(self.header, safe):
            self.store.changing()
            self._mixture = True
        self._commits.take_up(safe)
        self._reused = len(safe)
        self.store.journalled = self._begun = True
        self._file.session()
        self._seconds_recovery = time.perf_counter() - start

    def begin(self, plan: Mapping[str, Any], **facts: Any) -> None:
        """Write the header: from here on a kill can be survived. Of a resumed run nothing happens: its plan stands.

        Parameters
        ----------
        plan : mapping
            All that is needed to run in the same way again, as JSON values.
        **facts
            Whatever else should be on record (``device="cpu"``); kept in :attr:`header`, not compared.
        """
        if self._begun:
            return
        in_place = self._in_place
        header = {"request": self._request, "in_place": in_place, "output": _describe(self.store), "plan": plan, **facts}
        if self._mixture:
            header["mixture"] = True
        self._file.begin(plain(header, "the plan"))
        self.header, self.plan = self._file.header, self._file.header["plan"]
        self._file.session()
        if in_place:
            self.store.begin_write()
        self.store.journalled = self._begun = True

    @property
    def remedy(self) -> str:
        """What to do where this journal cannot be followed."""
        return remedy(self.path, mixture=overwritten(self.header, self._records) and not self._replaceable)

    def unusable(self, what: str) -> JournalError:
        """The error of an operation that cannot follow its header."""
        return JournalError(f"the journal {self.path} cannot be followed: {what}; {self.remedy}")

    # --- tiles -------------------------------------------------------------------------------------------------------

    def generation(self, tile: Rect) -> int:
        """The generation of a tile that is safe on disk, 0 if none is."""
        return self._commits.safe.get(tile, 0)

    def generations(self) -> dict[Rect, int]:
        """The generation of each tile that is safe on disk."""
        return dict(self._commits.safe)

    def write(self, tile: Rect, generation: int, part: Rect, data: NDArray[Any]) -> None:
        """Write ``part`` (whole chunks) of a tile; thread-safe. Afterwards the store reads it.

        The tile is recorded some time after its last part has come, at the latest by :meth:`flush`.

        Raises
        ------
        ShapeError, DtypeError
            If ``part`` cuts a chunk or ``data`` do not fit.
        StoreError
            If the generation is not newer than what is there, the tile overlaps another one, or the disk refuses.
        """
        if not self._begun:
            raise StoreError(f"the journal {self.path} has not begun; call begin() first")
        self._commits.write(tile, generation, part, data)

    def flush(self) -> None:
        """Make everything written so far durable (of tiles of which all parts are there)."""
        if self._begun:
            self._commits.settle(force=True)

    # --- the end -----------------------------------------------------------------------------------------------------

    def mark_complete(self) -> None:
        """Put on record that every tile is safe: what the operation needed on the way may go.

        Raises
        ------
        StoreError
            If tiles are missing, or the disk refuses.
        """
        if not self._begun or self.complete:
            return
        self.flush()
        self._commits.close()
        self._check_recorded()
        self._file.append([{"complete": True}])
        self.complete = True

    def _check_recorded(self) -> None:
        """Refuse to finish what has chunks without a record."""
        store = self.store
        safe = {key for rect in self._commits.safe for _, key in store.stored_chunks(rect)}
        missing = [key for _, key in store.stored_chunks(Rect(0, store.shape[0], 0, store.shape[1])) if key not in safe]
        if missing:
            gaps = f"{len(missing)} of its chunks are not on record in the journal {self.path}, the first is {missing[0]}"
            raise StoreError(f"{store} cannot be finished: {gaps}; {self.remedy}")

    def finish(self, **attributes: Any) -> None:
        """Give the output its name, with ``attributes`` in its metadata, and remove the journal.

        Raises
        ------
        StoreError
            If tiles are missing, or the disk refuses; the journal stays.
        """
        self.flush()
        self._commits.close()
        if self.header.get("mixture"):  # its old chunks are worth nothing
            self._check_recorded()
        self.store.finish(attributes, before=lambda text: self._file.append([{"finished": mark(text.encode())}]))
        self._file.remove()

    def suspend(self) -> None:
        """Leave everything for a later run: record what is ready and give up the lock. What has no tile on record goes."""
        if self._file.fd < 0:
            return
        group = self._group
        if group is not None and not group.failed:
            with contextlib.suppress(StoreError):
                self.flush()
        if not self._records and (group is None or not group.recorded) and not self._is_mixture():
            self.discard()
            return
        if group is not None:
            group.store.suspend()
        self._file.close()

    def _is_mixture(self) -> bool:
        """Whether the matrix was overwritten in part before, and is to be replaced: without a journal nobody could open it."""
        if self._mixture or overwritten(self.header, self._records):
            return True
        return self._restarted and self._group is None and (self.target / UNFINISHED).is_file()

    def discard(self) -> None:
        """Give the work up: remove a new output, and the journal.

        In place, a matrix of which nothing has been overwritten is as it was; else it stays unfinished, a mixture.
        """
        if self._group is not None:
            store = self._group.store
            if self._in_place:
                remove_orphans(store.chunk_path(""), None)
            store.discard()
        self._file.remove()

    def statistics(self) -> JournalStatistics:
        """What has been done so far, in this process."""
        group = self._group
        if group is None:
            return JournalStatistics(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)
        return JournalStatistics(
            self._reused,
            group.recorded,
            group.commits,
            group.syncs + group.commits,
            group.renames,
            group.nbytes,
            group.seconds_commits + group.seconds_checksums,
            group.seconds_checksums,
            self._seconds_recovery,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.suspend()

    def __repr__(self) -> str:
        tiles = len(self._group.safe) if self._group is not None else 0
        return f"<Journal {os.fspath(self.path)!r}: {tiles} tiles>"


def _describe(store: TileStore) -> dict[str, Any]:
    return {
        "shape": list(store.shape),
        "dtype": store.dtype.name,
        "chunks": list(store.chunks),
        "structure": store.structure,
    }
