"""Operations of several steps: on disk what they need on the way outlives a kill, in RAM it counts under their limit."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import numpy as np

from pycauset import config, operations
from pycauset.errors import JournalError, MemoryLimitError, StoreError, StoreExistsError
from pycauset.linalg.operands import in_memory
from pycauset.linalg.results import MATHEMATICS, Result
from pycauset.linalg.triangles import rectangles
from pycauset.matrix import Matrix
from pycauset.storage import open_store
from pycauset.storage.identity import differences, plain, versions
from pycauset.storage.journalfile import RESTART
from pycauset.storage.output import (
    fsync_folder,
    journal_path,
    remove_stages,
    stages_done,
    stages_folder,
    stages_request,
    write_durably,
)
from pycauset.tiling import Rect
from pycauset.units import format_bytes

if TYPE_CHECKING:
    from pycauset.solver.circumstances import Tally

__all__ = ["Stages", "limited"]

#: What elementwise passes need whatever the limit: their kernels' own bands take a megabyte.
_LEAST: Final = 4 << 20


def limited(limit: int | None, held: int = 0) -> AbstractContextManager[None]:
    """While the block runs, operations without a limit of their own have this one, less the bytes that are ``held``."""
    return contextlib.nullcontext() if limit is None else config.settings(memory=max(_LEAST, limit - held))


class Stages:
    """The steps of one operation: its result, and the matrices that it needs on the way (*stages*).

    Where the result has a journal, each stage lies in the folder ``NAME.stages`` beside it, with a journal of its own while it
    is computed, and the same call takes up what is there. ``request.json`` in the folder says what was asked, from which limits,
    free memory and hardware profile every step is planned, and how many tasks and tiles the finished ones had. Once all of the
    result is safe its journal says so, the file is called ``done.json``, and the folder goes before the result gets its name.

    Elsewhere stages lie in RAM or scratch. What they take of RAM is off the limit of the steps that follow.

    Parameters
    ----------
    name, shape, dtype, out, request, resume, **form
        As `Result` takes them, which is made, and so checked, before anything is computed.
    limits : dict
        ``memory``, ``gpu_memory`` and ``progress`` of the operation.
    staged : bool
        Whether there is anything on the way.

    Attributes
    ----------
    result : Result
    complete : bool
        All of the result is there; only `finish` is left.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        out: Any,
        *,
        request: Callable[[], dict[str, Any]],
        resume: Any,
        limits: dict[str, Any],
        staged: bool = True,
        **form: Any,
    ) -> None:
        from pycauset.solver.run import named_limit

        self._name, self._limits, self._limit = name, limits, named_limit(limits["memory"], "memory")
        self._made: dict[str, Matrix] = {}
        self._folder: Path | None = None
        self._record: dict[str, Any] = {}
        self._open = contextlib.ExitStack()
        self._tally: Tally
        self.complete = False
        asked = functools.cache(request)
        kept = _recorded_chunks(name, out) if staged and resume is True else None
        form = {**form, "chunks": kept or form.get("chunks")}
        self.result = Result(name, shape, dtype, out, limit=self._limit, request=asked, resume=resume, steps=staged, **form)
        if not staged or self.result.journal is None:
            return
        self._target = self.result.journal.target
        self._folder = stages_folder(self._target)
        try:
            self._take_up(plain({**asked(), "versions": versions()}), resume)
        except BaseException:
            self._open.close()
            self.result.journal.suspend()
            raise

    def _take_up(self, asked: dict[str, Any], resume: Any) -> None:
        """Find out what an earlier run has left."""
        assert self._folder is not None
        request, done = stages_request(self._target), stages_done(self._target)
        journal = self.result.journal
        if journal.resumed and not request.exists():
            if not journal.complete:
                raise JournalError(
                    f"the journal {journal.path} is of an unfinished {self._name}, and {request} is gone, with the matrices that "
                    f"it needs on the way; put the folder {self._folder.name} back, or {journal.remedy}"
                )
            self.complete = True
            return
        if self.result.finished or done.exists() or resume == "restart":
            remove_stages(self._target)
        if self.result.finished:
            return
        if request.exists():
            if resume is False:
                raise JournalError(
                    f"{self._folder} of an unfinished {self._name} is in the way; go on with resume=True, or {RESTART}"
                )
            self._record = _read(request)
            changed = differences(self._record["request"], asked)
            if changed:
                raise JournalError(
                    f"what {self._folder} holds is of other work: {'; '.join(changed)}; call as before to go on, or {RESTART}"
                )
            self._follow(request)
            return
        self._folder.mkdir(exist_ok=True)
        if any(not entry.name.startswith(request.name) for entry in self._folder.iterdir()):
            raise StoreExistsError(f"{self._folder} is in the way of what {self._name} keeps there; remove it")
        self._record = {"request": asked, **self._circumstances(), "chunks": self.result.store.chunks, "tasks": {}, "tiles": {}}
        self._write_record()
        fsync_folder(os.fspath(self._folder))
        self._follow(request)

    def _circumstances(self) -> dict[str, Any]:
        """What all steps are planned from."""
        from pycauset import devices
        from pycauset.devices.audit import load_profile
        from pycauset.solver.circumstances import circumstances
        from pycauset.solver.run import named_limit

        profile = load_profile()
        if profile.gpu is not None and config.get("backend") != "cpu":
            devices.gpu()  # its free memory counts, and a GPU that sleeps has none
        now = circumstances()
        limits = {"memory": self._limit or now.host, "gpu_memory": named_limit(self._limits["gpu_memory"], "gpu_memory")}
        return {"limits": limits, "circumstances": asdict(now), "profile": profile.model_dump(mode="json")}

    def _follow(self, request: Path) -> None:
        """Plan every step from what is on record."""
        from pycauset.devices.audit import using_profile
        from pycauset.hardware import HardwareProfile
        from pycauset.solver.circumstances import Circumstances, under
        from pycauset.solver.run import named_limit

        now = self._limit, named_limit(self._limits["gpu_memory"], "gpu_memory")
        try:
            given = Circumstances(**self._record["circumstances"])
            profile = HardwareProfile.model_validate(self._record["profile"])
            limits = {name: self._record["limits"][name] for name in ("memory", "gpu_memory")}
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{request} is damaged ({error}); restore the file, or {RESTART}") from None
        self._limits, self._limit = {**self._limits, **limits}, limits["memory"]
        self._open.enter_context(under(given, *now))
        self._open.enter_context(using_profile(profile))

    def _write_record(self) -> None:
        assert self._folder is not None
        write_durably(os.fspath(stages_request(self._target)), json.dumps(self._record))

    @property
    def lasting(self) -> bool:
        """Whether stages outlive the process."""
        return self._folder is not None

    @property
    def limits(self) -> dict[str, Any]:
        """The operation's limits, as the next step may have them."""
        left = self._limits["memory"] if self._limit is None else max(1, self._limit - self._held())
        return {**self._limits, "memory": left}

    def limited(self, *matrices: Matrix) -> AbstractContextManager[None]:
        """`limited` to what stages, the result and further ``matrices`` leave."""
        return limited(self._limit, self._held() + self.result.nbytes + sum(map(_bytes_in_ram, matrices)))

    def _held(self) -> int:
        return sum(map(_bytes_in_ram, self._made.values()))

    def make(
        self, stage: str, compute: Callable[[Path | None], Matrix], *, own: bool = True, from_result: bool = False
    ) -> Matrix:
        """A matrix on the way: the one that is there already, or what ``compute`` puts at the path that it is given.

        ``own=False`` tells that it takes no memory of its own, ``from_result`` that it is computed from what the result replaces.

        Raises
        ------
        JournalError
            If it is gone and cannot be computed again.
        """
        place = None if self._folder is None else self._folder / f"{stage}.zarr"
        if place is None:
            made = compute(place)
        elif place.is_dir() and not journal_path(place).exists():
            made = Matrix(open_store(place))
            self._tally.spared(self._record["tasks"].get(stage, 0), self._record["tiles"].get(stage, 0))
        else:
            journal = self.result.journal
            if from_result and self.result.consumes and journal.generations():
                raise JournalError(f"{place} is gone, which {self._name} needs to go on; put it back, or {journal.remedy}")
            tasks, tiles = self._tally.tasks, self._tally.tiles
            made = compute(place)
            self._record["tasks"][stage] = self._tally.tasks - tasks
            self._record["tiles"][stage] = self._tally.tiles - tiles
            self._write_record()
        if own:
            self._made[stage] = made
        return made

    def hold(self, matrix: Matrix) -> None:
        """Count what a further matrix takes of RAM until the operation ends."""
        self._made[f"matrix {len(self._made)}"] = matrix

    def drop(self, stage: str) -> None:
        """No later step needs this one: its memory or disk space is free again, if the caller has forgotten it too."""
        self._made.pop(stage, None)
        if self._folder is not None:
            shutil.rmtree(self._folder / f"{stage}.zarr", ignore_errors=True)

    def begin(self) -> None:
        """The result is written from now on."""
        self.result.begin(self._held())

    def put(self, matrix: Matrix) -> None:
        """Copy a matrix to the result's place; with a journal as one tile, which is there as a whole or not at all."""
        self.begin()
        store, journal = self.result.store, self.result.journal
        whole = Rect(0, store.shape[0], 0, store.shape[1])
        if journal is None:
            with self.limited(matrix):
                operations.copy_into(matrix, store, owner=self._name)
            return
        journal.begin({"tile": store.shape}, device="cpu")
        if whole.size and not journal.generation(whole):
            for part in rectangles(store):
                journal.write(whole, 1, part, np.asarray(matrix[part.slices]).reshape(part.shape))

    def finish(self, flags: int = 0, *, vector: bool = False) -> Any:
        """As `Result.finish`, and nothing is left of the way."""
        if self._folder is not None:
            self.result.journal.mark_complete()
            if stages_request(self._target).exists():
                os.replace(stages_request(self._target), stages_done(self._target))
                fsync_folder(os.fspath(self._folder))
            remove_stages(self._target)
        try:
            return self.result.finish(flags, vector=vector)
        except StoreError as error:
            if not self.complete:
                raise
            raise JournalError(f"{self._folder} is gone, and {self._name} is not finished: {error}; {RESTART}") from error

    def __enter__(self) -> Self:
        from pycauset.solver.circumstances import tally

        self._tally = self._open.enter_context(tally())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
        held = self._held()
        self._made.clear()
        self.result.__exit__(kind, error, trace)
        if isinstance(error, MATHEMATICS) and self._folder is not None:
            remove_stages(self._target)
        if isinstance(error, MemoryLimitError) and held:
            error.add_note(f"{self._name} holds {format_bytes(held)} of RAM beside this step, which count under its limit too")


def _recorded_chunks(name: str, out: Any) -> tuple[int, int] | None:
    """The chunks of the result that an interrupted run was making: the sizes of tiles follow from them."""
    if not isinstance(out, (str, os.PathLike)):
        return None
    request = stages_request(Path(out).expanduser().absolute())
    with contextlib.suppress(OSError, JournalError, KeyError, TypeError, ValueError):
        found = _read(request)
        if found["request"].get("operation") == name:
            height, width = found["chunks"]
            return int(height), int(width)
    return None


def _read(request: Path) -> dict[str, Any]:
    """What a file says was asked.

    Raises
    ------
    JournalError
        If it is no such file.
    """
    try:
        found = {"tiles": {}, **json.loads(request.read_text(encoding="utf-8"))}
        for name in ("request", "limits", "circumstances", "profile", "tasks", "tiles"):
            if not isinstance(found[name], dict):
                raise TypeError(f"{name} is {found[name]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{request} is damaged ({error}); restore the file, or {RESTART}") from None
    return cast(dict[str, Any], found)


def _bytes_in_ram(matrix: Matrix) -> int:
    return matrix.nbytes if in_memory(matrix.store) is not None else 0
