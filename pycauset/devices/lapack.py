"""LAPACK without the GIL, in place on row-major tiles with any leading dimension.

A row-major matrix is its transpose in LAPACK's column-major eyes, and a row-major lower triangle a column-major upper one:
``A = L Lᴴ`` of the one is ``Aᵀ = Uᴴ U`` of the other with ``U = Lᵀ``, so the factor lies where it should.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pycauset.devices.fortran import LETTER, character, integer, leading, routine

__all__ = ["potrf", "trtri"]


def potrf(c: np.ndarray[Any, Any], *, lower: bool = True) -> int:
    """Cholesky factor of a Hermitian tile in place: ``C = L Lᴴ``, or ``C = Uᴴ U`` if not ``lower``.

    The other triangle is neither read nor written, and imaginary parts on the diagonal are taken as zero.

    Parameters
    ----------
    c : ndarray (n, n)
        Row-major tile of float32, float64, complex64 or complex128, rows any distance apart.

    Returns
    -------
    int
        0, or the order of the first leading minor that is not positive definite; its pivot, before the square root, then
        stands on the diagonal. NaN and infinity need not be noticed: look at the diagonal.

    Examples
    --------
    >>> c = np.array([[4.0, np.nan], [2.0, 5.0]])
    >>> potrf(c)
    0
    >>> c
    array([[ 2., nan],
           [ 1.,  2.]])
    """
    pc, ldc = leading(c)
    info = ctypes.c_int(0)
    routine(LETTER[c.dtype.name] + "potrf", 5, "lapack")(
        character("U" if lower else "L"), integer(c.shape[0]), pc, integer(ldc), ctypes.byref(info)
    )
    return _checked("potrf", info.value)


def trtri(t: np.ndarray[Any, Any], *, uplo: str = "L", unit: bool = False) -> int:
    """Inverse of the lower (``uplo="L"``) or upper (``"U"``) triangle of a tile, in place.

    The other triangle is neither read nor written; nor is the diagonal if it is taken as ``unit``.

    Returns
    -------
    int
        0, or one more than the index of the first zero on the diagonal; the tile is then as it was.

    Examples
    --------
    >>> t = np.array([[2.0, np.nan], [1.0, 4.0]])
    >>> trtri(t)
    0
    >>> t
    array([[ 0.5  ,    nan],
           [-0.125,  0.25 ]])
    """
    pt, ldt = leading(t)
    info = ctypes.c_int(0)
    routine(LETTER[t.dtype.name] + "trtri", 6, "lapack")(
        character("U" if uplo == "L" else "L"),
        character("U" if unit else "N"),
        integer(t.shape[0]),
        pt,
        integer(ldt),
        ctypes.byref(info),
    )
    return _checked("trtri", info.value)


def _checked(name: str, info: int) -> int:
    if info < 0:  # a mistake of ours, not of the matrix
        raise ValueError(f"LAPACK's {name} refuses its argument {-info}")
    return info
