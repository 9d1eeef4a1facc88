"""Cholesky factorisation of matrices of any size, out of place or in place, with a journal where it may take long."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pycauset.devices.blas import takes_rows
from pycauset.errors import (
    ConfigError,
    DtypeError,
    NotPositiveDefiniteError,
    PycausetError,
    ShapeError,
    StorePermissionError,
)
from pycauset.linalg.operands import chunks_like, in_memory, kernel_type, square, stored
from pycauset.linalg.overwriting import RESTORING, after_lapack, changed, interrupted_restore, restore_by_journal, source_of, told
from pycauset.linalg.overwriting import restore as restore_tiles
from pycauset.linalg.results import MATHEMATICS, Result, check_options, request_of
from pycauset.linalg.triangles import check_finite as refuse_non_finite
from pycauset.linalg.triangles import check_hermitian, clear_beyond, load
from pycauset.matrix import Matrix
from pycauset.properties import Properties, known, mask
from pycauset.storage import ArrayStore, TileStore, ZarrStore, open_store

if TYPE_CHECKING:
    from pycauset.drivers.cholesky import CholeskyDriver

__all__ = ["cholesky"]

Array = np.ndarray[Any, Any]

_SMALL: Final = 256
"""Order up to which a matrix in RAM goes straight to LAPACK: choosing a route would take longer."""
_VARIANTS: Final = ("left", "right", "triangle")


def cholesky(
    a: Any,
    lower: bool = True,
    overwrite_a: bool = False,
    check_finite: bool = True,
    *,
    overwrite: bool | None = None,
    restore: Any = None,
    check: bool = False,
    variant: str | None = None,
    out: Any = None,
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Matrix:
    """Cholesky factor of a symmetric (Hermitian) positive definite matrix: ``A = L Lᴴ``, or ``A = Uᴴ U``.

    Only one triangle is read, computed and stored. What fits in neither RAM nor GPU memory is streamed in blocks. With a
    path as ``out``, or in place on disk, a journal is kept beside the matrix: after a kill the same call goes on.

    Parameters
    ----------
    a : Matrix or array_like (n, n), or path
        Of any kind: in RAM, on disk, stored as one triangle, computed by a function, a view ``A.T``. Integers and booleans
        are computed in float64.
    lower : bool
        Compute L from the lower triangle (as NumPy does), or U from the upper one.
    overwrite_a : bool
        The factor may be put in the place of ``a``, if that can hold it: a NumPy array, or a matrix on disk, which then keeps one
        triangle only.
    overwrite : bool
        It has to be: where ``a`` cannot hold its factor, the error says why.
    restore : Matrix or array_like (n, n), or path, optional
        The elements of ``a`` once more, for overwriting it: a function of the indices, a random matrix by its seed. If ``a``
        turns out not to be positive definite, what has been overwritten is written again from it, and ``a`` is as it was.
    check_finite : bool
        Say where NaN or infinity was found. Where that overwrites nothing it costs a search when a pivot comes out as no number;
        in place without ``restore`` all of the triangle is read once more before anything is overwritten. (They are never taken
        for numbers, asked or not.)
    check : bool
        Compare the two triangles first, element by element; otherwise the other triangle is not looked at.
    variant : {"left", "right", "triangle"}, optional
        The order of the tile tasks (see the page on algorithms); by default the one that can do with the fewest bytes, by the
        fastest of its plans that moves no more than any of another order.
    out : Matrix or ndarray (n, n), or path, optional
        Where the factor goes. A path becomes a Zarr folder of one triangle, or a full ``.npy`` file by its suffix.
    resume : bool or "restart"
        What to do about the journal of an interrupted run: go on (True), refuse (False), or start over.
    memory, gpu_memory : int or str, optional
        Bytes that the operation may take: ``"2GB"``. Default: the settings, else what is free.
    progress : bool or callable, optional
        See `pycauset.progress.reporter`.

    Returns
    -------
    Matrix (n, n)
        Known to be triangular. ``out`` or ``a`` itself, if they were matrices and take the result. Without ``out`` it lies in
        RAM if there is room, else in a scratch store that goes with its last reference.

    Raises
    ------
    NotPositiveDefiniteError
        With ``order`` of the leading minor, ``pivot`` and its ``value``. Inputs are intact; in place without ``restore``,
        ``tiles`` tells which of them hold the factor, which are updated in part, which are as they were, and which are neither.
    NonFiniteError, NotHermitianError
        From ``check_finite`` and ``check``.
    ShapeError, DtypeError, OverlapError
        If ``a`` is not square, or ``out`` does not fit or shares storage with ``a``.
    MemoryLimitError
        If a limit is too small for any plan; the message has the numbers.
    JournalError, JournalBusyError
        If the journal is of other work (the message has what changed) or another process is at it.
    StoreError
        If a store cannot be read or written; with a journal the same call goes on.

    References
    ----------
    .. [1] O. Beaumont, L. Eyraud-Dubois, M. Vérité and J. Langou, "I/O-optimal algorithms for symmetric linear algebra
       kernels", SPAA 2022.

    Examples
    --------
    >>> L = cholesky([[4.0, 2.0], [2.0, 5.0]])
    >>> L.to_numpy()
    array([[2., 0.],
           [1., 2.]])
    >>> L.properties.is_lower_triangular
    True
    """
    check_options(progress, resume)
    matrix = square("cholesky", a)
    dtype = kernel_type("cholesky", matrix.dtype)
    if variant is not None and variant not in _VARIANTS:
        raise ConfigError(f"cholesky: variant is {variant!r}; it must be one of {', '.join(_VARIANTS)}")
    from pycauset.solver.run import named_limit

    limit = named_limit(memory, "memory")
    if check and not getattr(matrix.store, "unfinished", False):
        check_hermitian("cholesky", stored(matrix), limit)
    if restore is not None and not (overwrite_a or overwrite):
        raise ConfigError("cholesky: restore is for overwrite=True; otherwise a stays as it is")
    job = _Cholesky(matrix, dtype, bool(lower), variant, memory, gpu_memory, progress)
    if not overwrite and not (overwrite_a and (out is None or out is a) and job.refusal() is None):
        try:
            return job.out_of_place(out, limit, resume)
        except NotPositiveDefiniteError as error:
            if check_finite and math.isnan(error.value):
                refuse_non_finite("cholesky", stored(matrix), job.part, memory=limit)
            raise
    if out is not None and out is not a:
        raise ConfigError("cholesky: overwrite puts the factor in the place of a, and out in another; give one of them")
    job.limit, job.check_finite = limit, check_finite
    return job.in_place(resume, restore)


class _Cholesky:
    """One factorisation, out of place or in place."""

    def __init__(
        self,
        matrix: Matrix,
        dtype: np.dtype[Any],
        lower: bool,
        variant: str | None,
        memory: Any,
        gpu_memory: Any,
        progress: Any,
    ) -> None:
        self.matrix, self.dtype, self.lower, self.variant = matrix, dtype, lower, variant
        self.memory, self.gpu_memory, self.progress = memory, gpu_memory, progress
        self.n = matrix.shape[0]
        self.part = "lower" if lower else "upper"
        self.flags = mask(f"is_{self.part}_triangular")
        self.limited = memory is not None or gpu_memory is not None
        self.limit: int | None = None
        self.check_finite = False
        self.source: TileStore | None = None  # to restore from
        self.driver: CholeskyDriver | None = None
        self.by_lapack = self.restored = False

    # -- out of place ---------------------------------------------------------------------------------------------

    def out_of_place(self, out: Any, limit: int | None, resume: Any) -> Matrix:
        """The factor in a store of its own."""
        source = stored(self.matrix)
        shape, dtype = self.matrix.shape, self.dtype
        if out is None and not self.limited and self.n <= _SMALL:
            small = np.empty(shape, dtype)
            load(source, small, self.part)
            self._lapack(small)
            return Matrix._of_array(small, self.flags)
        chunks = chunks_like(source, shape, dtype, limit)
        request = {"dtype": dtype.name, "lower": self.lower, "variant": self.variant}
        operands = {"a": (self.matrix.store, self.matrix.op)}
        with Result(
            "cholesky",
            shape,
            dtype,
            out,
            structure=self.part,
            reads=(self.matrix.store,),
            limit=limit,
            chunks=chunks,
            request=lambda: request_of("cholesky", request, operands),
            resume=resume,
        ) as result:
            if result.finished:
                return result.opened()
            array = in_memory(result.store)

            def in_core() -> None:
                assert array is not None
                load(source, array, self.part)
                self._lapack(array)

            direct = _rows(array, dtype) is not None
            plan = self._run(source, result.store, result.nbytes, result.journal, in_core if direct else None)
            clear_beyond(result.store, self.part, plan.tile[0] if plan is not None else 0, result.journal)
            factor: Matrix = result.finish(self.flags)
            return factor

    def _run(self, source: TileStore, factor: TileStore, result_bytes: int, journal: Any, in_core: Any) -> Any:
        from pycauset.drivers.cholesky import CholeskyDriver
        from pycauset.solver.blocked import BlockedOperation, in_core_seconds, run

        if not self.n:
            return None
        flops = (4.0 if self.dtype.kind == "c" else 1.0) * self.n**3 / 3
        if self.variant is not None or journal is not None:
            in_core = None
        seconds = in_core_seconds("cholesky", flops, self.dtype, self.n) if in_core is not None else 0.0
        self.driver = driver = CholeskyDriver(source, factor, self.dtype, lower=self.lower, variant=self.variant, journal=journal)
        operation = BlockedOperation(
            "cholesky",
            driver,
            flops,
            self.memory,
            self.gpu_memory,
            result_bytes,
            self.progress,
            in_core,
            seconds,
            repeatable=source is not factor,
        )
        return run(operation, journal)

    def _lapack(self, array: Array) -> None:
        """Factor an array in place, zeros in its other triangle."""
        from pycauset import devices

        if not array.size:
            return
        found = _rows(array, self.dtype)
        assert found is not None
        rows, flipped = found
        self.by_lapack = True
        devices.cpu().kernels["potrf"]((rows,), (rows,), (0, self.lower != flipped), None)

    # -- in place -------------------------------------------------------------------------------------------------

    def in_place(self, resume: Any, restore: Any) -> Matrix:
        """The factor in the place of the matrix."""
        matrix, array = self.matrix, self.matrix._array
        refused = self.refusal()
        if refused is not None:
            raise refused
        self.source = source_of(restore, matrix)
        if array is not None:
            self._array_in_place(ArrayStore(array))
        elif isinstance(matrix.store, ZarrStore):
            again = self._journalled(matrix.store, resume)
            if again is not None:
                return again
        else:
            self._unjournalled(matrix.store)
        from pycauset import operations
        from pycauset.indexing import select

        operations.forget(matrix, select((slice(None), slice(None)), matrix.shape), zeros=False)
        matrix.properties = Properties(matrix.shape, matrix.dtype, self.flags)
        return matrix

    def _look_first(self, store: TileStore) -> None:
        """Refuse NaN and infinity while nothing has been overwritten, unless that can be undone."""
        if self.check_finite and self.source is None:
            refuse_non_finite("cholesky", store, self.part, memory=self.limit)

    def _failed(self, error: Exception, store: TileStore, what: str) -> Exception:
        """The error to raise, after what was overwritten has been restored, if it can be."""
        pivot = error.pivot if isinstance(error, NotPositiveDefiniteError) else None
        if self.driver is not None and self.driver.followed is not None:
            tiles = self.driver.contents(pivot)
        elif self.by_lapack:
            tiles = after_lapack(pivot, self.n, self.lower)
        else:
            return error
        touched = changed(tiles)
        if touched and self.source is not None:
            restore_tiles(self.source, store, touched, self.limit)
            self.restored = True
        return told(error, tiles, what, restored=self.restored)

    def _blame(self, error: Exception, store: TileStore) -> None:
        """Of a matrix that has been restored: name the element that made a pivot no number."""
        if self.restored and self.check_finite and isinstance(error, NotPositiveDefiniteError) and math.isnan(error.value):
            refuse_non_finite("cholesky", store, self.part, memory=self.limit)

    def refusal(self) -> PycausetError | None:
        """Why the matrix cannot hold its factor; None if it can."""
        matrix, store = self.matrix, self.matrix.store
        if not store.writable:
            return StorePermissionError(
                f"cholesky: {matrix!r} is computed or read-only, nothing can be overwritten; leave overwrite"
            )
        if matrix.dtype != self.dtype:
            return DtypeError(
                f"cholesky: a matrix of {matrix.dtype} cannot hold its factor, which is {self.dtype}; leave overwrite"
            )
        if matrix._array is not None:
            return None
        if matrix.op != "N":
            return ShapeError(f"cholesky: {matrix!r} is a view; overwrite the matrix itself")
        mirrored = store.structure in ("symmetric", "hermitian")
        if store.structure not in ("full", self.part) and not (mirrored and self.lower):
            return ShapeError(
                f"cholesky: {matrix!r} is stored as {store.structure}, which has no {self.part} triangle to overwrite; "
                f"give lower={not self.lower}"
            )
        return None

    def _check_not_done(self) -> None:
        """Refuse what is the factor already, as far as its metadata tell (one triangle may be stored as such without a claim)."""
        flags, claim = self.matrix._flags(), f"is_{self.part}_triangular"
        claims = self.matrix.store.attributes.get("properties") or {}
        if claims.get(claim) and known(flags, claim) and not known(flags, "is_diagonal"):
            raise ConfigError(
                f"cholesky: {self.matrix!r} is known to be {self.part} triangular: is it the factor already? Else withdraw the "
                f"claim, A.properties.is_{self.part}_triangular = None"
            )

    def _array_in_place(self, store: ArrayStore) -> None:
        self._look_first(store)
        direct = _rows(store.array, self.dtype) is not None
        try:
            if not self.limited and self.n <= _SMALL and direct:
                self._lapack(store.array)
                return
            plan = self._run(store, store, 0, None, (lambda: self._lapack(store.array)) if direct else None)
        except Exception as error:
            said = self._failed(error, store, "the array")
            self._blame(said, store)
            if said is error:
                raise
            raise said from None
        clear_beyond(store, self.part, plan.tile[0] if plan is not None else 0)

    def _unjournalled(self, store: TileStore) -> None:
        """A file whose tiles cannot be replaced atomically."""
        self._check_not_done()
        self._look_first(store)
        store.begin_write()
        try:
            plan = self._run(store, store, 0, None, None)
            clear_beyond(store, self.part, plan.tile[0] if plan is not None else self.n)
            store.commit(properties=Properties(store.shape, store.dtype, self.flags).to_json())
        except Exception as error:
            try:
                said = self._failed(error, store, str(store.path))
            finally:
                store.commit() if self.restored else store.discard()
            self._blame(said, store)
            if said is error:
                raise
            raise said from None
        except BaseException:
            store.discard()
            raise

    def _journalled(self, store: ZarrStore, resume: Any) -> Matrix | None:
        """In place, tile by tile; the matrix of an interrupted run that had finished after all, if so."""
        from pycauset.storage.journal import open_journal

        assert store.path is not None
        request = request_of(
            "cholesky in place",
            {"dtype": self.dtype.name, "lower": self.lower, "variant": self.variant},
            {"a": (store, "N")},
            in_place=True,
        )
        del request["operands"]["a"]["structure"]  # finishing changes it
        with open_journal(store.path, request, resume=resume, replaceable=self.source is not None) as journal:
            mixture = False
            if journal.finished:
                self.matrix = Matrix(open_store(store.path))
                if known(self.matrix._flags(), f"is_{self.part}_triangular"):
                    return self.matrix
            else:
                journal.in_place(store)
                mixture = store.unfinished and not journal.resumed
                if mixture:
                    journal.begin(RESTORING)
                elif not journal.resumed:
                    self._check_not_done()
                    self._look_first(store)
                if not interrupted_restore(journal, self.source):
                    self._with_journal(store, journal)
                    return None
                assert self.source is not None
                restore_by_journal(self.source, journal, store, self.limit)
        # A matrix that has been restored: only the work itself can say again what is wrong with it.
        assert isinstance(self.matrix.store, ZarrStore)
        return self._journalled(self.matrix.store, True if mixture else resume)

    def _with_journal(self, store: ZarrStore, journal: Any) -> None:
        try:
            self._run(store, store, 0, journal, None)
        except MATHEMATICS as error:
            with contextlib.suppress(OSError):
                journal.flush()
            assert self.driver is not None
            pivot = error.pivot if isinstance(error, NotPositiveDefiniteError) else None
            tiles = self.driver.contents(pivot, journal.generations())
            if self.source is not None and changed(tiles):
                restore_by_journal(self.source, journal, store, self.limit)
                self.restored = True
            else:
                journal.discard()
            said = told(error, tiles, str(store.path), restored=self.restored)
            self._blame(said, store)
            raise said from None
        store.restructure(self.part)
        journal.finish(properties=Properties(store.shape, store.dtype, self.flags).to_json())


def _rows(array: Array | None, dtype: np.dtype[Any]) -> tuple[Array, bool] | None:
    """An array as kernels take it, or its transpose (then True); None if neither will do."""
    if array is not None:
        for view, flipped in ((array, False), (array.T, True)):
            if takes_rows(view, dtype):
                return view, flipped
    return None
