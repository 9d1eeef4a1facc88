"""BLAS without the GIL and without copies, on row-major tiles with any leading dimension.

``scipy.linalg.blas`` holds the GIL during a call, so that a prefetch thread starves behind it. The function pointers
that ``scipy.linalg.cython_blas`` exports for Cython users (``__pyx_capi__``, a documented interface) can be called
through ctypes, which releases the GIL.

A row-major matrix is its transpose in BLAS's column-major eyes, so ``C = op(A) op(B)`` is asked for as
``Cᵀ = op(B)ᵀ op(A)ᵀ``: swap the operands, keep the flags. A row-major lower triangle is a column-major upper one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["gemm", "rank_k"]

_LETTER = {"float32": "s", "float64": "d", "complex64": "c", "complex128": "z"}
_SCALAR: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "complex64": ctypes.c_float * 2,
    "complex128": ctypes.c_double * 2,
}
_FLAG = {"N": ctypes.c_char(b"N"), "T": ctypes.c_char(b"T"), "H": ctypes.c_char(b"C"), "U": ctypes.c_char(b"U")}
_PyCapsule_GetName = ctypes.pythonapi.PyCapsule_GetName
_PyCapsule_GetName.restype = ctypes.c_char_p
_PyCapsule_GetName.argtypes = [ctypes.py_object]
_PyCapsule_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
_PyCapsule_GetPointer.restype = ctypes.c_void_p
_PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


@functools.cache
def _routine(name: str, arguments: int) -> Callable[..., None]:
    """The BLAS routine ``name`` as a ctypes function of ``arguments`` pointers; calling it releases the GIL."""
    from scipy.linalg import cython_blas

    capsule = cython_blas.__pyx_capi__[name]
    address = _PyCapsule_GetPointer(capsule, _PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _scalar(value: complex, dtype: np.dtype[Any]) -> Any:
    kind = _SCALAR[dtype.name]
    if dtype.kind == "c":
        value = complex(value)
        return ctypes.byref(kind(value.real, value.imag))
    return ctypes.byref(kind(float(value.real)))


def _leading(a: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Address and leading dimension (elements) of a row-major 2-D array."""
    row, column = a.strides
    if column != a.itemsize and a.shape[1] > 1:
        raise ValueError(f"a tile of strides {a.strides} is not row-major")
    return a.__array_interface__["data"][0], max(row // a.itemsize if a.shape[0] > 1 else 0, a.shape[1], 1)


def gemm(
    a: np.ndarray[Any, Any],
    b: np.ndarray[Any, Any],
    c: np.ndarray[Any, Any],
    *,
    alpha: complex = 1.0,
    beta: complex = 0.0,
    op_a: str = "N",
    op_b: str = "N",
) -> None:
    """``c = alpha op(a) op(b) + beta c`` in place; op is ``"N"``, ``"T"`` or ``"H"``. With ``beta = 0``, c is not read.

    Parameters
    ----------
    a, b, c : ndarray
        Row-major tiles of one dtype (float32, float64, complex64 or complex128), rows any distance apart.

    Examples
    --------
    >>> a = np.arange(6.0).reshape(2, 3)
    >>> c = np.full((2, 2), np.nan)
    >>> gemm(a, a, c, op_b="T")
    >>> c
    array([[ 5., 14.],
           [14., 50.]])
    """
    m, n = c.shape
    k = a.shape[1] if op_a == "N" else a.shape[0]
    pa, lda = _leading(a)
    pb, ldb = _leading(b)
    pc, ldc = _leading(c)
    _routine(_LETTER[c.dtype.name] + "gemm", 13)(
        ctypes.byref(_FLAG[op_b]),
        ctypes.byref(_FLAG[op_a]),
        _int(n),
        _int(m),
        _int(k),
        _scalar(alpha, c.dtype),
        pb,
        _int(ldb),
        pa,
        _int(lda),
        _scalar(beta, c.dtype),
        pc,
        _int(ldc),
    )


def rank_k(
    a: np.ndarray[Any, Any],
    c: np.ndarray[Any, Any],
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    op_a: str = "N",
    hermitian: bool = False,
) -> None:
    """Lower triangle of ``c = alpha op(a) op(a)ᵀ + beta c`` (SYRK), or ``op(a)ᴴ`` instead of ``op(a)ᵀ`` (HERK).

    ``op_a="N"`` multiplies ``a`` by its transpose, any other value the transpose by ``a``. The strictly upper triangle
    of ``c`` is left alone.

    Examples
    --------
    >>> a = np.arange(6.0).reshape(2, 3)
    >>> c = np.zeros((2, 2))
    >>> rank_k(a, c)
    >>> c
    array([[ 5.,  0.],
           [14., 50.]])
    """
    n = c.shape[0]
    k = a.shape[1] if op_a == "N" else a.shape[0]
    pa, lda = _leading(a)
    pc, ldc = _leading(c)
    herk = hermitian and c.dtype.kind == "c"
    real = np.dtype("float32" if c.dtype.itemsize == 8 else "float64") if herk else c.dtype
    _routine(_LETTER[c.dtype.name] + ("herk" if herk else "syrk"), 10)(
        ctypes.byref(_FLAG["U"]),
        ctypes.byref(_FLAG[("H" if herk else "T") if op_a == "N" else "N"]),
        _int(n),
        _int(k),
        _scalar(alpha, real),
        pa,
        _int(lda),
        _scalar(beta, real),
        pc,
        _int(ldc),
    )
