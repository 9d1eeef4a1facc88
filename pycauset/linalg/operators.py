"""What eigenvalue and singular value functions take: matrices, arrays, sparse matrices and linear operators, as products."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycauset import config, devices
from pycauset.devices.base import Device
from pycauset.errors import BackendError, ConfigError, DtypeError, NonFiniteError, NotHermitianError, ShapeError
from pycauset.governor import Scope, Ticket
from pycauset.linalg.operands import dimensions, in_memory, kernel_type
from pycauset.matrix import Matrix, asmatrix
from pycauset.properties import known
from pycauset.solver.products import ArrayProduct, CalledProduct, Product, ResidentProduct, StreamedProduct, blame, blame_resident
from pycauset.solver.run import Limits, operation_limits
from pycauset.tiling import Rect

__all__ = ["Called", "Operator", "limits_for", "operator", "seeded_start"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """A linear map: a matrix whose elements can be read, or something that only multiplies.

    Attributes
    ----------
    shape : (int, int)
    dtype : dtype
        To compute in.
    matrix : Matrix or None
    linear : object or None
        A sparse matrix or `LinearOperator`.
    resident : array or None
        An array in GPU memory, of the module ``xp``.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    matrix: Matrix | None = None
    linear: Any = None
    resident: Any = None
    xp: Any = None

    def device(self, limits: Limits, mirror: str | None = None) -> Device:
        """Where products are computed."""
        if self.resident is not None:
            return devices.gpu() or devices.cpu()
        return devices.cpu() if self.matrix is None else _device(self.name, self.matrix, limits, mirror is not None)

    def passes_cost(self, where: Device) -> bool:
        """Whether a pass costs moving the matrix, however many vectors it serves: from a disk, or to a GPU."""
        return self.matrix is not None and (in_memory(self.matrix.store) is None or not where.unified)

    def streamed(self, where: Device) -> bool:
        """Whether products go through the streamer, which holds their blocks under tickets of its own."""
        return self.matrix is not None and not (where.unified and self.matrix._array is not None)

    def mirror(self, hermitian: bool) -> str | None:
        """How one triangle follows from the other, as claimed or stored, or because the caller says ``hermitian``."""
        a = self.matrix
        if a is None or self.shape[0] != self.shape[1]:
            return None
        flags, real = a._flags(), a.dtype.kind != "c"
        if hermitian or known(flags, "is_hermitian"):
            return "symmetric" if real else "hermitian"
        for name, found in (
            ("is_symmetric", "symmetric"),
            ("is_skew_symmetric", "skew"),
            ("is_skew_hermitian", "skew-hermitian"),
        ):
            if known(flags, name):
                return found
        return None

    def origin(self, mirror: str | None) -> dict[str, Any] | None:
        """Who the operand is, for work that goes on after an interruption; None unless it lies on disk."""
        a = self.matrix
        if a is None or a.store.path is None or in_memory(a.store) is not None:
            return None
        from pycauset.linalg.results import request_of

        return request_of(self.name, {"mirror": mirror}, {"a": (a.store, a.op)})

    def product(
        self, width: int, limits: Limits, scope: Scope, where: Device, *, mirror: str | None = None, gram: str = ""
    ) -> Product:
        """Products with blocks of up to ``width`` vectors.

        Parameters
        ----------
        limits : Limits
            What is left.
        where : Device
            As from `device`.
        mirror : str, optional
            As from `mirror`.
        gram : {"", "tall", "wide"}
            Products with ``Aᴴ A``, or with ``A Aᴴ``.
        """
        if self.resident is not None:
            return ResidentProduct(self.resident, self.xp, self.dtype, gram=gram, scope=scope)
        if self.matrix is None:
            return self._called(gram)
        a = self.matrix.H if gram == "wide" else self.matrix
        if where.unified and a._array is not None:
            array, real = a._array, self.dtype.kind != "c"
            if mirror == "symmetric" and array.flags.f_contiguous:
                array = array.T
            return ArrayProduct(
                array, self.dtype, hermitian=mirror == "hermitian" or (real and mirror == "symmetric"), gram=bool(gram)
            )
        op = a.op
        if mirror and op != "N":  # the view of a matrix that equals its own (conjugate) transpose
            if not mirror.startswith("skew"):
                op = "N" if op == ("H" if mirror == "hermitian" else "T") else "C"
            elif op != "C":
                mirror = None  # rare, and not worth a sign: both triangles are read
        return StreamedProduct(
            where, a.store, self.dtype, width, op=op, mirror=mirror, gram=bool(gram), limits=limits, scope=scope
        )

    def _called(self, gram: str) -> Product:
        if not gram:
            return Called(self, self._forth, self.dtype)
        forth, back = self._forth, self._back
        return Called(self, back, self.dtype, forth) if gram == "tall" else Called(self, forth, self.dtype, back)

    def _forth(self, x: Array) -> Array:
        return np.asarray(self.linear @ x)

    def _back(self, x: Array) -> Array:
        if hasattr(self.linear, "rmatmat"):
            return np.asarray(self.linear.rmatmat(x))
        return np.asarray(self.linear.conj().T @ x)

    def whole(self, scope: Scope, elements: int) -> Ticket:
        """A ticket for so many elements in RAM, of which LAPACK takes all at once.

        Raises
        ------
        MemoryLimitError
            If they do not fit.
        """
        return scope.require("host", elements * self.dtype.itemsize, owner=f"{self.name}: the whole matrix, for LAPACK")

    def dense(self) -> Array:
        """All elements in RAM, in an array of their own."""
        if self.matrix is not None:
            array = self.matrix.to_numpy(force=True)
            return array.astype(self.dtype, copy=self.matrix._array is not None)
        if self.resident is not None:
            return np.array(self._on_host(), self.dtype)
        if self.sparse:
            return np.array(self.linear.toarray(), self.dtype)
        m, n = self.shape
        if m < n:
            return np.array(self._back(np.eye(m, dtype=self.dtype)).conj().T, self.dtype)
        return np.array(self.linear @ np.eye(n, dtype=self.dtype), self.dtype)

    def _on_host(self) -> Array:
        return np.asarray(getattr(self.xp, "asnumpy", np.asarray)(self.resident))

    @property
    def sparse(self) -> bool:
        """Whether this is a sparse matrix of SciPy's."""
        import sys

        module = sys.modules.get("scipy.sparse")
        return bool(self.linear is not None and module is not None and module.issparse(self.linear))

    def elements(self, what: str, scope: Scope, stack: ExitStack) -> Matrix:
        """The matrix, for a factorisation; a sparse one as a dense array, under a ticket that ``stack`` gives back.

        Raises
        ------
        ConfigError
            For a LinearOperator, whose elements nobody can read.
        MemoryLimitError
            If a dense array does not fit.
        """
        if self.matrix is not None:
            return self.matrix
        if not self.sparse and self.resident is None:
            raise ConfigError(f"{self.name}: {what} must be factored, and a LinearOperator has no elements; give a matrix")
        nbytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        stack.enter_context(scope.require("host", nbytes, owner=f"{self.name}: {what} as an array in RAM"))
        if self.resident is not None:
            return asmatrix(self._on_host())
        return asmatrix(self.linear.toarray())

    def check_hermitian(self, memory: int | None) -> None:
        """Compare every element with its mirror image.

        Raises
        ------
        NotHermitianError
            With the first that differs.
        ConfigError
            For a LinearOperator.
        """
        from pycauset.linalg.triangles import check_hermitian

        if self.matrix is not None:
            check_hermitian(self.name, self.matrix.store, memory)
            return
        if self.resident is not None:
            self.look()
            self._check_resident()
            return
        if not self.sparse:
            raise ConfigError(f"{self.name}: check=True compares elements, and a LinearOperator has none; leave check out")
        self.look()  # NaN differs from itself
        entries = (self.linear - self.linear.conj().T).tocoo()
        bad = np.flatnonzero(entries.data != 0)
        if len(bad):
            i, j = sorted((int(entries.row[bad[0]]), int(entries.col[bad[0]])), reverse=True)
            raise NotHermitianError(f"{self.name}: a[{i}, {j}] is not the conjugate of a[{j}, {i}]; symmetrize a", index=(i, j))

    def _check_resident(self) -> None:
        a, xp = self.resident, self.xp
        for r in range(0, len(a), 1024):
            bad = xp.argwhere(a[r : r + 1024] != a[:, r : r + 1024].T.conj())
            if len(bad):
                i, j = int(bad[0][0]) + r, int(bad[0][1])
                raise NotHermitianError(
                    f"{self.name}: a[{i}, {j}] is not the conjugate of a[{j}, {i}]; symmetrize a", index=(i, j)
                )

    # -- NaN and infinity ---------------------------------------------------------------------------------------------

    def look(self, what: str = "A") -> None:
        """Look for NaN and infinity among the elements.

        Raises
        ------
        NonFiniteError
            With the tile, row and column of the first; a LinearOperator shows nothing.
        """
        if self.matrix is not None:
            store = self.matrix.store
            (m, n), (h, w) = store.shape, (1024, 1024) if in_memory(store) is not None else store.chunks
            for r in range(0, m, h):
                for c in range(0, n, w):
                    rect = Rect(r, min(r + h, m), c, min(c + w, n))
                    tile = np.empty(rect.shape, store.dtype)
                    store.read(rect, tile)
                    if not np.isfinite(tile).all():
                        blame(store, [rect])
        elif self.resident is not None:
            blame_resident(self.resident, self.xp)
        elif self.sparse:
            entries = self.linear.tocoo()
            bad = np.flatnonzero(~np.isfinite(entries.data))
            if len(bad):
                i, j, value = (array[bad[0]] for array in (entries.row, entries.col, entries.data))
                raise NonFiniteError(
                    f"{self.name}: {what}, a sparse matrix, holds {value} at row {i}, column {j}; eigenvalues and singular "
                    "values need a finite matrix"
                )

    def blame(self) -> None:
        """Say why a product holds NaN or infinity.

        Raises
        ------
        NonFiniteError
            Always.
        """
        self.look()
        if self.matrix is None and not self.sparse:
            raise NonFiniteError(f"{self.name}: the LinearOperator gives NaN or infinity for a finite block of vectors")
        raise NonFiniteError(f"{self.name}: a product with the matrix overflows {self.dtype}; scale it, or take a wider type")


class Called(CalledProduct):
    """Products by functions, that can say where NaN came from.

    Parameters
    ----------
    of : Operator
        What is multiplied with.
    call, dtype, forward
        As `CalledProduct` takes them.
    """

    def __init__(
        self,
        of: Operator,
        call: Callable[[Array], Array],
        dtype: np.dtype[Any],
        forward: Callable[[Array], Array] | None = None,
    ) -> None:
        super().__init__(call, dtype, forward)
        self._of = of

    def _blame(self, x: Array) -> None:
        self._of.blame()


def operator(name: str, a: Any, *, square: bool = True) -> Operator:
    """Anything that these functions take, as an `Operator`.

    Raises
    ------
    ShapeError, DtypeError
        If it is no matrix of numbers, or not square where it must be.
    """
    if isinstance(a, (str, os.PathLike)):
        from pycauset.files import open as open_matrix

        a = open_matrix(a)
    made: Operator
    if hasattr(a, "__cuda_array_interface__"):
        made = _resident(name, a)
    elif not isinstance(a, (Matrix, np.ndarray, list, tuple)) and _is_linear(a):
        if a.dtype is None:
            raise DtypeError(f"{name}: the LinearOperator has no dtype; give it one")
        rows, cols = (int(s) for s in a.shape)
        made = Operator(name, (rows, cols), kernel_type(name, np.dtype(a.dtype)), linear=a)
    else:
        if dimensions(name, a, "first") == 1:
            raise ShapeError(f"{name}: A is a vector of shape {np.shape(a)}; it must be a matrix of two dimensions")
        matrix = asmatrix(a)
        made = Operator(name, matrix.shape, kernel_type(name, matrix.dtype), matrix)
    if square and made.shape[0] != made.shape[1]:
        raise ShapeError(f"{name}: A has shape {made.shape}; it must be square")
    return made


def _resident(name: str, a: Any) -> Operator:
    """An array in GPU memory, used where it lies."""
    from pycauset.hardware.probe import gpu_problem, import_cupy

    xp = import_cupy()
    if xp is None or devices.gpu() is None:
        raise BackendError(f"{name}: A lies in GPU memory, and the GPU cannot be used: {gpu_problem()}")
    array = xp.asarray(a)
    if array.ndim != 2:
        raise ShapeError(f"{name}: A has shape {array.shape}; it must be a matrix of two dimensions")
    return Operator(name, array.shape, kernel_type(name, np.dtype(array.dtype)), resident=array, xp=xp)


def seeded_start(name: str, n: int, v0: Any, rng: Any) -> Any:
    """``v0``, or without one a random vector from the caller's generator, if there is one.

    Raises
    ------
    ConfigError
        If that is no generator and no seed.
    """
    if v0 is not None or rng is None:
        return v0
    try:
        return np.random.default_rng(rng).standard_normal(n)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: rng is {rng!r}; it must be a seed or a numpy.random.Generator") from None


def _is_linear(a: Any) -> bool:
    import sys

    sparse, operators = sys.modules.get("scipy.sparse"), sys.modules.get("scipy.sparse.linalg")
    return bool(
        (sparse is not None and sparse.issparse(a)) or (operators is not None and isinstance(a, operators.LinearOperator))
    )


#: Passes over A that an iteration takes, about: with wide blocks, and with single vectors.
_WIDE_PASSES, _NARROW_PASSES = 20, 50
_WIDTH = 16
#: Below, a matrix is no work for a GPU.
_LEAST_BYTES = 1 << 28


def limits_for(a: Operator, memory: Any, gpu_memory: Any) -> Limits:
    """What an operation on ``a`` may take; if products may run on the GPU, it is woken up, so that it has memory."""
    backend = config.get("backend")
    if a.resident is not None or (a.matrix is not None and backend == "gpu"):
        devices.gpu()
    elif a.matrix is not None and backend == "auto" and a.matrix.nbytes >= _LEAST_BYTES:
        from pycauset.devices.audit import load_profile

        profile = load_profile()
        if profile.gpu is not None and _seconds_on_cpu(a.matrix, kernel_type(a.name, a.dtype), False) > profile.gpu.start_seconds:
            devices.gpu()
    return operation_limits(memory, gpu_memory)


def _seconds_on_cpu(a: Matrix, dtype: np.dtype[Any], mirrored: bool) -> float:
    """Of a whole iteration."""
    from pycauset.devices.audit import load_profile

    profile = load_profile()
    nbytes = a.nbytes / (2 if mirrored else 1)
    if in_memory(a.store) is not None:
        return _NARROW_PASSES * nbytes / profile.cpu.copy_bandwidth_all
    flops = 2.0 * a.size * _WIDTH * (4 if dtype.kind == "c" else 1)
    rate = profile.gemm_rate("cpu", dtype.name, 1000.0)
    return _WIDE_PASSES * max(nbytes / profile.disk.read_bandwidth, nbytes / profile.cpu.copy_bandwidth_all, flops / rate)


def _device(name: str, a: Matrix, limits: Limits, mirrored: bool) -> Device:
    """Where the products run: on the GPU where the profile says that an iteration takes less time there."""
    backend = config.get("backend")
    if backend == "cpu":
        return devices.cpu()
    if backend == "gpu":
        gpu = devices.gpu()
        if gpu is None:
            raise BackendError(f"{name}: there is no usable GPU; call pycauset.cuda.info() for the reason")
        return gpu
    if a.nbytes < _LEAST_BYTES:
        return devices.cpu()
    from pycauset.devices.audit import load_profile

    profile = load_profile()
    if profile.gpu is None:
        return devices.cpu()
    dtype = kernel_type(name, a.dtype)
    nbytes = a.nbytes / (2 if mirrored else 1)
    source = profile.disk.read_bandwidth if in_memory(a.store) is None else profile.cpu.copy_bandwidth_all
    link = min(profile.gpu.h2d_pinned, source)
    held = min(1.0, limits.device / max(nbytes, 1))
    on_gpu = nbytes / link * (1 + (_WIDE_PASSES - 1) * (1 - held))
    if devices.gpu_is_cold():
        on_gpu += profile.gpu.start_seconds
    if _seconds_on_cpu(a, dtype, mirrored) <= on_gpu:
        return devices.cpu()
    return devices.gpu() or devices.cpu()
