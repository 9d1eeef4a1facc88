"""Fortran's BLAS and LAPACK as SciPy ships them, called through ctypes.

``scipy.linalg.blas`` and ``lapack`` hold the GIL during a call, so that a prefetch thread starves behind them. The function
pointers that ``cython_blas`` and ``cython_lapack`` export for Cython users (``__pyx_capi__``, a documented interface) can
be called through ctypes, which releases the GIL. Every argument is a pointer; matrices are column-major.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["LETTER", "character", "integer", "leading", "routine", "scalar"]

#: The letter that names a routine's element type.
LETTER = {"float32": "s", "float64": "d", "complex64": "c", "complex128": "z"}
_SCALAR: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "complex64": ctypes.c_float * 2,
    "complex128": ctypes.c_double * 2,
}
_CHARACTER = {letter: ctypes.c_char(b"C" if letter == "H" else letter.encode()) for letter in "NTHLRU"}
_PyCapsule_GetName = ctypes.pythonapi.PyCapsule_GetName
_PyCapsule_GetName.restype = ctypes.c_char_p
_PyCapsule_GetName.argtypes = [ctypes.py_object]
_PyCapsule_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
_PyCapsule_GetPointer.restype = ctypes.c_void_p
_PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


@functools.cache
def routine(name: str, arguments: int, library: str = "blas") -> Callable[..., None]:
    """The routine ``name`` of "blas" or "lapack" as a function of ``arguments`` pointers; calling it releases the GIL."""
    capsule = importlib.import_module(f"scipy.linalg.cython_{library}").__pyx_capi__[name]
    address = _PyCapsule_GetPointer(capsule, _PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def character(flag: str) -> Any:
    """A pointer to a flag: side L or R, triangle U or L, operation N, T or H, diagonal U or N."""
    return ctypes.byref(_CHARACTER[flag])


def integer(value: int) -> Any:
    """A pointer to an integer."""
    return ctypes.byref(ctypes.c_int(value))


def scalar(value: complex, dtype: np.dtype[Any]) -> Any:
    """A pointer to a scalar of the routine's element type."""
    kind = _SCALAR[dtype.name]
    if dtype.kind == "c":
        value = complex(value)
        return ctypes.byref(kind(value.real, value.imag))
    return ctypes.byref(kind(float(value.real)))


def leading(a: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Address and leading dimension (elements) of a row-major 2-D array."""
    row, column = a.strides
    if column != a.itemsize and a.shape[1] > 1:
        raise ValueError(f"a tile of strides {a.strides} is not row-major")
    return a.__array_interface__["data"][0], max(row // a.itemsize if a.shape[0] > 1 else 0, a.shape[1], 1)
