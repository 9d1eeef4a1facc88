"""cuBLAS through ctypes, on the library that CuPy has loaded.

CuPy's own bindings point the handle at CuPy's current stream in every call, lack HERK, and are private. Here a handle
belongs to one stream for good. Pointers are plain integers; scalars live on the host.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import numpy as np

__all__ = ["Cublas", "CublasError"]

_NAMES = ("libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so")
_LETTER = {"float32": "S", "float64": "D", "complex64": "C", "complex128": "Z"}
_OPERATION = {"N": 0, "T": 1, "H": 2}
_LOWER, _UPPER = 0, 1
_FILL = {"L": 0, "U": 1}
_SIDE = {"L": 0, "R": 1}
_STATUS = {
    1: "not initialized",
    3: "out of memory",
    7: "invalid value",
    8: "architecture mismatch",
    11: "mapping error",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}


class CublasError(RuntimeError):
    """A cuBLAS call returned a status other than success; ``status`` is its number."""

    def __init__(self, routine: str, status: int) -> None:
        super().__init__(f"{routine} returned status {status} ({_STATUS.get(status, 'unknown')})")
        self.status = status


@functools.cache
def _library() -> ctypes.CDLL:
    from cupy_backends.cuda.libs import cublas  # noqa: F401 - finds and loads the library

    for name in _NAMES:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
    return ctypes.CDLL(_NAMES[0])


@functools.cache
def _routine(name: str, signature: str) -> Any:
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_size_t}
    function = getattr(_library(), name)
    function.restype = ctypes.c_int
    function.argtypes = [kinds[letter] for letter in signature]
    return function


_scalars: dict[tuple[complex, str], tuple[int, np.ndarray[Any, Any]]] = {}


def _scalar(value: complex, name: str) -> int:
    """The address of a scalar in host memory that stays where it is."""
    entry = _scalars.get((value, name))
    if entry is None:
        dtype = np.dtype(name)
        array = np.array(value if dtype.kind == "c" else complex(value).real, dtype)
        entry = _scalars[value, name] = array.__array_interface__["data"][0], array
    return entry[0]


class Cublas:
    """A handle on one stream."""

    def __init__(self, stream: int) -> None:
        handle = ctypes.c_void_p()
        self._check("cublasCreate", _routine("cublasCreate_v2", "p")(ctypes.byref(handle)))
        self._handle = handle
        self._check("cublasSetStream", _routine("cublasSetStream_v2", "pp")(handle, stream))

    @staticmethod
    def _check(routine: str, status: int) -> None:
        if status:
            raise CublasError(routine, status)

    def gemm(
        self,
        dtype: str,
        op_a: str,
        op_b: str,
        m: int,
        n: int,
        k: int,
        alpha: complex,
        a: int,
        lda: int,
        b: int,
        ldb: int,
        beta: complex,
        c: int,
        ldc: int,
    ) -> None:
        """``C = alpha op(A) op(B) + beta C``, all column-major."""
        name = f"cublas{_LETTER[dtype]}gemm_v2"
        status = _routine(name, "piiiiippipippi")(
            self._handle,
            _OPERATION[op_a],
            _OPERATION[op_b],
            m,
            n,
            k,
            _scalar(alpha, dtype),
            a,
            lda,
            b,
            ldb,
            _scalar(beta, dtype),
            c,
            ldc,
        )
        if status:
            raise CublasError(name, status)

    def rank_k(
        self,
        dtype: str,
        op: str,
        n: int,
        k: int,
        alpha: float,
        a: int,
        lda: int,
        beta: float,
        c: int,
        ldc: int,
        *,
        hermitian: bool,
        uplo: str = "L",
    ) -> None:
        """``C = alpha op(A) op(A)ᵀ + beta C`` (SYRK) or ``op(A)ᴴ`` (HERK), column-major.

        Only the triangle that is ``uplo`` in row-major eyes is computed, so ``"L"`` is cuBLAS's upper one.
        """
        herk = hermitian and dtype.startswith("complex")
        name = f"cublas{_LETTER[dtype]}{'herk' if herk else 'syrk'}_v2"
        real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype) if herk else dtype
        status = _routine(name, "piiiippippi")(
            self._handle,
            _UPPER if uplo == "L" else _LOWER,
            _OPERATION[op],
            n,
            k,
            _scalar(alpha, real),
            a,
            lda,
            _scalar(beta, real),
            c,
            ldc,
        )
        if status:
            raise CublasError(name, status)

    def trsm(
        self,
        dtype: str,
        side: str,
        uplo: str,
        op: str,
        unit: bool,
        m: int,
        n: int,
        alpha: complex,
        a: int,
        lda: int,
        b: int,
        ldb: int,
    ) -> None:
        """``B = alpha op(A)⁻¹ B`` (side ``"L"``) or ``B = alpha B op(A)⁻¹`` (``"R"``) with a triangle A, all column-major."""
        self._triangle("trsm_v2", "pipi", dtype, side, uplo, op, unit, m, n, alpha, a, lda, b, ldb)

    def trsm_batched(
        self,
        dtype: str,
        side: str,
        uplo: str,
        op: str,
        unit: bool,
        m: int,
        n: int,
        alpha: complex,
        a: int,
        lda: int,
        b: int,
        ldb: int,
        count: int,
    ) -> None:
        """:meth:`trsm` for ``count`` pairs of matrices; ``a`` and ``b`` are arrays of their addresses in device memory."""
        self._triangle("trsmBatched", "pipii", dtype, side, uplo, op, unit, m, n, alpha, a, lda, b, ldb, count)

    def trmm(
        self,
        dtype: str,
        side: str,
        uplo: str,
        op: str,
        unit: bool,
        m: int,
        n: int,
        alpha: complex,
        a: int,
        lda: int,
        b: int,
        ldb: int,
        c: int,
        ldc: int,
    ) -> None:
        """``C = alpha op(A) B`` (side ``"L"``) or ``C = alpha B op(A)`` (``"R"``) with a triangle A, all column-major."""
        self._triangle("trmm_v2", "pipipi", dtype, side, uplo, op, unit, m, n, alpha, a, lda, b, ldb, c, ldc)

    def _triangle(
        self,
        routine: str,
        matrices: str,
        dtype: str,
        side: str,
        uplo: str,
        op: str,
        unit: bool,
        m: int,
        n: int,
        alpha: complex,
        *rest: int,
    ) -> None:
        """A routine with a triangle: after what all of them take, ``rest`` by the signature ``matrices``."""
        name = f"cublas{_LETTER[dtype]}{routine}"
        flags = _SIDE[side], _FILL[uplo], _OPERATION[op], int(unit)
        status = _routine(name, "piiiiiip" + matrices)(self._handle, *flags, m, n, _scalar(alpha, dtype), *rest)
        if status:
            raise CublasError(name, status)
