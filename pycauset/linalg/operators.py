"""What eigenvalue and singular value functions take: matrices, arrays, sparse matrices and linear operators, as products."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycauset import config, devices
from pycauset.devices.base import Device
from pycauset.errors import BackendError, DtypeError, ShapeError
from pycauset.governor import Scope, Ticket
from pycauset.linalg.operands import dimensions, in_memory, kernel_type
from pycauset.matrix import Matrix, asmatrix
from pycauset.properties import known
from pycauset.solver.products import ArrayProduct, CalledProduct, Product, StreamedProduct
from pycauset.solver.run import Limits

__all__ = ["Operator", "operator"]

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
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    matrix: Matrix | None = None
    linear: Any = None

    def passes_cost(self, limits: Limits) -> bool:
        """Whether a pass costs moving the matrix, however many vectors it serves: from a disk, or to a GPU."""
        a = self.matrix
        return a is not None and (in_memory(a.store) is None or not _device(self.name, a, limits, 24).unified)

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

    def product(
        self, width: int, limits: Limits, scope: Scope, *, mirror: str | None = None, gram: str = "", taken: int = 0
    ) -> Product:
        """Products with blocks of up to ``width`` vectors.

        Parameters
        ----------
        mirror : str, optional
            As from `mirror`.
        gram : {"", "tall", "wide"}
            Products with ``Aᴴ A``, or with ``A Aᴴ``.
        taken : int
            Bytes of the limit that are taken already.
        """
        if self.matrix is None:
            return self._called(gram)
        a = self.matrix.H if gram == "wide" else self.matrix
        where = _device(self.name, a, limits, width)
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
            where, a.store, self.dtype, width, op=op, mirror=mirror, gram=bool(gram), limits=limits, scope=scope, taken=taken
        )

    def _called(self, gram: str) -> Product:
        linear = self.linear

        def forth(x: Array) -> Array:
            return np.asarray(linear @ x)

        def back(x: Array) -> Array:
            if hasattr(linear, "rmatmat"):
                return np.asarray(linear.rmatmat(x))
            return np.asarray(linear.conj().T @ x)

        if not gram:
            return CalledProduct(forth, self.dtype)
        return CalledProduct(back, self.dtype, forth) if gram == "tall" else CalledProduct(forth, self.dtype, back)

    def whole(self, scope: Scope) -> Ticket:
        """A ticket for all elements in RAM and for what LAPACK takes.

        Raises
        ------
        MemoryLimitError
            If they do not fit.
        """
        nbytes = 3 * self.shape[0] * self.shape[1] * self.dtype.itemsize
        return scope.require("host", nbytes, owner=f"{self.name}: the whole matrix, for LAPACK")

    def dense(self) -> Array:
        """All elements in RAM."""
        n = self.shape[1]
        if self.matrix is not None:
            return self.matrix.to_numpy(force=True).astype(self.dtype)
        return np.asarray(self.linear @ np.eye(n, dtype=self.dtype), self.dtype)


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
    if not isinstance(a, (Matrix, np.ndarray, list, tuple)) and _is_linear(a):
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


def _is_linear(a: Any) -> bool:
    import sys

    sparse, operators = sys.modules.get("scipy.sparse"), sys.modules.get("scipy.sparse.linalg")
    return bool(
        (sparse is not None and sparse.issparse(a)) or (operators is not None and isinstance(a, operators.LinearOperator))
    )


def _device(name: str, a: Matrix, limits: Limits, width: int) -> Device:
    """Where the products run: on the GPU where the profile says that a pass takes less time there."""
    backend = config.get("backend")
    if backend == "cpu":
        return devices.cpu()
    if backend == "gpu":
        gpu = devices.gpu()
        if gpu is None:
            raise BackendError(f"{name}: there is no usable GPU; call pycauset.cuda.info() for the reason")
        return gpu
    if a.nbytes < 1 << 28:
        return devices.cpu()
    from pycauset.devices.audit import load_profile

    profile = load_profile()
    if profile.gpu is None:
        return devices.cpu()
    dtype = kernel_type(name, a.dtype)
    on_disk = in_memory(a.store) is None
    source = profile.disk.read_bandwidth if on_disk else float("inf")
    flops = 2.0 * a.size * width * (4 if dtype.kind == "c" else 1)
    on_cpu = max(
        a.nbytes / profile.cpu.copy_bandwidth_all, a.nbytes / source, flops / profile.gemm_rate("cpu", dtype.name, 1000.0)
    )
    held = min(1.0, limits.device / max(a.nbytes, 1))
    on_gpu = (1 - held) * max(a.nbytes / profile.gpu.h2d_pinned, a.nbytes / source)
    if 20 * (on_cpu - on_gpu) < profile.gpu.start_seconds + a.nbytes / profile.gpu.h2d_pinned:
        return devices.cpu()
    return devices.gpu() or devices.cpu()
