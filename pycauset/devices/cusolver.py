"""cuSOLVER's Cholesky factorisation through ctypes, on the library that CuPy has loaded.

As with cuBLAS, a handle belongs to one stream for good, pointers are plain integers, and the caller owns all device memory.
The routines count in 32-bit integers, so a tile's order stays below 32,768.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from pycauset.errors import DeviceError

__all__ = ["Cusolver", "CusolverError"]

_NAMES = ("libcusolver.so.12", "libcusolver.so.11", "libcusolver.so")
_LETTER = {"float32": "S", "float64": "D", "complex64": "C", "complex128": "Z"}
_SIZE = {"float32": 4, "float64": 8, "complex64": 8, "complex128": 16}
_FILL = {"L": 0, "U": 1}
_STATUS = {
    1: "not initialized",
    2: "allocation failed",
    3: "invalid value",
    4: "architecture mismatch",
    5: "mapping error",
    6: "execution failed",
    7: "internal error",
    8: "matrix type not supported",
    9: "not supported",
}


class CusolverError(RuntimeError):
    """A cuSOLVER call returned a status other than success; ``status`` is its number."""

    def __init__(self, routine: str, status: int) -> None:
        super().__init__(f"{routine} returned status {status} ({_STATUS.get(status, 'unknown')})")
        self.status = status


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        from cupy_backends.cuda.libs import cusolver  # noqa: F401 - finds and loads the library
    except ImportError as error:  # CuPy itself runs without it
        raise DeviceError(
            f"cuSOLVER, which factorises on the GPU, cannot be loaded: {error}; install the CUDA toolkit's libraries "
            "(pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'), or set PYCAUSET_BACKEND=cpu"
        ) from error

    for name in _NAMES:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
    return ctypes.CDLL(_NAMES[0])


@functools.cache
def _routine(name: str, signature: str) -> Any:
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int}
    function = getattr(_library(), name)
    function.restype = ctypes.c_int
    function.argtypes = [kinds[letter] for letter in signature]
    return function


def _call(name: str, signature: str, *arguments: Any) -> None:
    status = _routine(name, signature)(*arguments)
    if status:
        raise CusolverError(name, status)


class Cusolver:
    """A handle on one stream."""

    def __init__(self, stream: int) -> None:
        self._handle = ctypes.c_void_p()
        _call("cusolverDnCreate", "p", ctypes.byref(self._handle))
        _call("cusolverDnSetStream", "pp", self._handle, stream)
        self._elements: dict[tuple[str, str, int, int], int] = {}

    def potrf_bytes(self, dtype: str, uplo: str, n: int, lda: int) -> int:
        """Bytes of device memory that :meth:`potrf` needs beside the matrix."""
        key = dtype, uplo, n, lda
        if key not in self._elements:
            elements = ctypes.c_int()
            name = f"cusolverDn{_LETTER[dtype]}potrf_bufferSize"
            _call(name, "piipip", self._handle, _FILL[uplo], n, None, lda, ctypes.byref(elements))
            self._elements[key] = elements.value
        return self._elements[key] * _SIZE[dtype]

    def potrf(self, dtype: str, uplo: str, n: int, a: int, lda: int, workspace: int, info: int) -> None:
        """Factor a column-major triangle in place; the order of the first bad leading minor goes to ``info`` on the device.

        ``workspace`` has room for :meth:`potrf_bytes`.
        """
        elements = self.potrf_bytes(dtype, uplo, n, lda) // _SIZE[dtype]
        name = f"cusolverDn{_LETTER[dtype]}potrf"
        _call(name, "piipipip", self._handle, _FILL[uplo], n, a, lda, workspace, elements, info)
