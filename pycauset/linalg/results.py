"""Where a result goes: RAM or scratch, a path (with a journal beside it), or a matrix or array of the caller's."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.linalg import LinAlgError

from pycauset.errors import DtypeError, JournalError, NonFiniteError, OverlapError, ShapeError, StorePermissionError
from pycauset.evaluate import new_result
from pycauset.linalg.operands import in_memory
from pycauset.matrix import Matrix, asmatrix
from pycauset.properties import Properties
from pycauset.storage import TileStore, ZarrStore, create_store, open_store
from pycauset.storage.journalfile import RESTART
from pycauset.storage.output import journal_path, remove_stages, stages_folder, stages_request

__all__ = ["MATHEMATICS", "Result", "check_options", "request_of"]

#: Errors of the mathematics: to go on with the same operands would end in the same way.
MATHEMATICS = (LinAlgError, NonFiniteError)


def check_options(progress: Any, resume: Any = True) -> None:
    """Refuse ``progress`` and ``resume`` that make no sense, before any work, also where it is too small to need them.

    Raises
    ------
    ConfigError
    """
    if resume is not True:
        from pycauset.storage.journal import check_resume

        check_resume(resume)
    if progress is not None:
        from pycauset.progress import reporter

        reporter(progress, "", 0.0)


def request_of(
    operation: str,
    arguments: dict[str, Any],
    operands: dict[str, tuple[TileStore, str]],
    *,
    in_place: bool = False,
    own: TileStore | None = None,
) -> dict[str, Any]:
    """What a journal compares: everything that decides the result's bits.

    Operands change as work goes on ``in_place``: all of them, or the one that is its ``own`` output.
    """
    from pycauset.hardware.arithmetic import cpu_arithmetic
    from pycauset.storage.identity import newest_chunk
    from pycauset.storage.journal import operand_identity

    identities = {name: {**operand_identity(store), "op": op} for name, (store, op) in operands.items()}
    for name, (store, _) in operands.items():
        if not in_place and store is not own and store.path is not None and store.path.is_dir():
            identities[name]["chunks"] = newest_chunk(store.path)
    return {"operation": operation, "arguments": arguments, "operands": identities, "threads": cpu_arithmetic()}


class Result:
    """The store that a result is computed into, from its making to the end.

    Making it checks that ``out`` can take the result. As a context manager it is ready to be written, and ends well by
    :meth:`finish`; when an exception leaves the block, what was begun is removed, or, with a journal, kept for the same call to
    go on (unless the error is one of `MATHEMATICS`).

    Parameters
    ----------
    name : str
        Of the operation, for errors.
    shape, dtype
        Of the result.
    out : None, path, Matrix or ndarray
    structure : str
        Of a new store on disk.
    reads : sequence of TileStore
        The operands a and b, as far as they are read while the result is written.
    limit : int or None
        The operation's host memory in bytes.
    chunks : (int, int), optional
        Of a new store on disk.
    request : callable, optional
        Gives the request of a journal (`request_of`). A Zarr folder named by path then gets one, and a matrix of the caller's
        that is one, of the result's own type: tiles are replaced as the journal records them. In a narrower type a run that is
        taken up would go on with rounded tiles.
    resume : bool or "restart"
        As `open_journal` takes it.
    steps : bool
        The operation has several steps, and looks after the folder of stages itself.

    Attributes
    ----------
    store : TileStore
    journal : Journal or None
    finished : bool
        An interrupted run had finished after all; there is nothing to do but `opened`.
    consumes : bool
        With a journal: the output takes the place of an operand.
    nbytes : int
        Bytes of a new result in RAM.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        out: Any,
        *,
        structure: str = "full",
        reads: tuple[TileStore, ...] = (),
        limit: int | None = None,
        chunks: tuple[int, int] | None = None,
        request: Callable[[], dict[str, Any]] | None = None,
        resume: Any = True,
        steps: bool = False,
    ) -> None:
        self.journal: Any = None
        self.finished, self.consumes, self.nbytes = False, False, 0
        self._steps = steps
        self._out, self._path, self._shape, self._dtype = out, None, shape, dtype
        self._structure, self._limit, self._chunks = structure, limit, chunks
        self._begun = self._done = False
        self.store: TileStore
        if out is None:
            return
        if isinstance(out, (str, os.PathLike)):
            self._path, self._begun = os.fspath(out), True
            for which, store in zip("ab", reads, strict=False):
                if store.lies_at(out):
                    raise OverlapError(
                        f"{name}: out={self._path!r} is where {which} lies ({store}), still to be read; give another path"
                    )
            plain = self._path.endswith(".npy")
            if plain or request is None:
                form: dict[str, Any] = {} if plain else {"chunks": chunks, "structure": structure}
                self.store = create_store(out, shape, dtype, **form)
            else:
                self._begin_journal(shape, dtype, structure, chunks, request(), resume)
        else:
            self.store = _given(name, out, shape, dtype, structure, reads)
            # Tiles along a diagonal are square, and a journal takes whole chunks.
            fits = self.store.dtype == dtype and (structure == "full" or self.store.chunks[0] == self.store.chunks[1])
            if request is not None and isinstance(self.store, ZarrStore) and fits and _is_whole(self.store):
                self._begun = True
                self._begin_overwriting(self.store, request(), resume)

    def _begin_overwriting(self, store: ZarrStore, request: dict[str, Any], resume: Any) -> None:
        from pycauset.storage.journal import open_journal

        assert store.path is not None
        real = os.path.realpath(store.path)
        self.consumes = any(identity.get("path") == real for identity in request["operands"].values())
        self.journal = open_journal(store.path, request, resume=resume, replaceable=not self.consumes)
        try:
            self._look_for_stages(resume)
            self.finished = self.journal.finished
            if not self.finished:
                self.journal.in_place(store)
        except BaseException:
            self.journal.suspend()
            raise

    def _begin_journal(
        self, shape: tuple[int, int], dtype: Any, structure: str, chunks: Any, request: dict[str, Any], resume: Any
    ) -> None:
        from pycauset.storage.journal import open_journal

        assert self._path is not None
        self.journal = open_journal(self._path, request, resume=resume)
        try:
            self._look_for_stages(resume)
            self.finished = self.journal.finished
            if self.finished:
                self.store = open_store(self._path)
            else:
                # A resumed output keeps the chunks that it was begun with.
                kept = None if self.journal.resumed else chunks
                self.store = self.journal.new_output(shape, dtype, chunks=kept, structure=structure)
        except BaseException:
            self.journal.suspend()
            raise

    def _look_for_stages(self, resume: Any) -> None:
        """Refuse, or remove when told to start over, what an interrupted operation of several steps left for this output."""
        target = self.journal.target
        if self._steps or not stages_request(target).is_file():
            return
        if resume == "restart" or self.journal.finished:
            remove_stages(target)
            return
        raise JournalError(
            f"{stages_folder(target)} is of other work on {target}, which was interrupted; make that call again to go on, or "
            f"{RESTART}"
        )

    def begin(self, held: int = 0) -> None:
        """Make a result that has no place yet, or open the given one for writing; ``held`` bytes of the limit are taken."""
        if self._begun:
            return
        if self._out is None:
            limit = None if self._limit is None else max(1, self._limit - held)
            self.store = new_result(self._shape, self._dtype, limit, chunks=self._chunks, structure=self._structure)
            self.nbytes = self.store.nbytes if in_memory(self.store) is not None else 0
        else:
            self.store.begin_write()
        self._begun = True

    def opened(self) -> Matrix:
        """The result of the run that had finished."""
        self._done = True
        return self._out if isinstance(self._out, Matrix) else Matrix(self.store)

    def finish(self, flags: int = 0, *, vector: bool = False) -> Any:
        """Finish the output, with its properties; what the caller gets.

        Parameters
        ----------
        flags : int
            Claims.
        vector : bool
            A column that nobody gave a place comes back as an array of one dimension.
        """
        self._done = True
        claims = Properties(self.store.shape, self.store.dtype, flags).to_json()
        on_disk = {"properties": claims} if claims or self.store.attributes.get("properties") else {}
        if in_memory(self.store) is not None:
            on_disk = {}
        if self.journal is not None:
            self.journal.finish(**on_disk)
        else:
            self.store.commit(**on_disk)
        if self._out is None and vector:
            return column_of(self.store)
        if self._out is None or self._path is not None:
            return Matrix._of_store(self.store, "N", flags)
        if isinstance(self._out, Matrix):
            self._out.properties = Properties(self._out.shape, self._out.dtype, flags)
        return self._out

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if (self._done and error is None) or not self._begun:
            return
        if self.journal is None:
            self.store.discard()
        elif isinstance(error, MATHEMATICS):
            self.journal.discard()
        else:
            self.journal.suspend()


def _is_whole(store: ZarrStore) -> bool:
    """Whether a matrix is finished, or a journal tells what is in it: one that its caller is just making has no name yet."""
    assert store.path is not None
    return not store.unfinished or journal_path(store.path).exists()


def column_of(store: TileStore) -> np.ndarray[Any, Any]:
    """A store of one column as an array of one dimension."""
    array = in_memory(store)
    if array is None:
        array = np.empty(store.shape, store.dtype)
        from pycauset.linalg.triangles import load

        load(store, array)
    return array[:, 0]


def _given(
    name: str, out: Any, shape: tuple[int, int], dtype: np.dtype[Any], structure: str, reads: tuple[TileStore, ...]
) -> TileStore:
    """The store of a matrix or array that the caller gave for the result, if it can take it."""
    if not hasattr(out, "shape"):
        raise DtypeError(f"{name}: out is a {type(out).__qualname__}; it must be a Matrix, an array, or a path")
    matrix = asmatrix(out)
    if matrix.shape != shape:
        raise ShapeError(f"{name}: out has shape {tuple(out.shape)}, but the result has shape {shape}")
    if not np.can_cast(dtype, matrix.dtype, "same_kind"):
        raise DtypeError(f"{name}: the result is {dtype}, which out of {matrix.dtype} cannot hold; give an out of {dtype}")
    if matrix.op != "N":
        raise ShapeError(f"{name}: out is {matrix!r}; give the matrix itself, not a view of it")
    if matrix.store.structure not in ("full", structure):
        raise ShapeError(f"{name}: out is stored as {matrix.store.structure}, but the result is {structure}; give a full out")
    for which, store in zip("ab", reads, strict=False):
        if matrix.store.overlaps(store):
            raise OverlapError(
                f"{name}: out {matrix!r} shares storage with {which} ({store}), which is still to be read; give another out"
            )
    if not matrix.store.writable:
        raise StorePermissionError(f"{name}: out {matrix!r} is read-only; give another out")
    return matrix.store
