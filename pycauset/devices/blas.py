"""BLAS without the GIL and without copies, on row-major tiles with any leading dimension.

A row-major matrix is its transpose in BLAS's column-major eyes, so ``C = op(A) op(B)`` is asked for as
``Cᵀ = op(B)ᵀ op(A)ᵀ``: swap the operands, keep the flags. A row-major lower triangle is a column-major upper one,
and what multiplies from the left there multiplies from the right here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pycauset.devices.fortran import LETTER, character, integer, leading, routine, scalar

__all__ = ["adjoint_product", "gemm", "hemv", "product", "rank_k", "takes_rows", "trmm", "trsm"]

_OPPOSITE = {"L": "R", "R": "L"}
_MIRRORED = {"L": "U", "U": "L"}


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
    pa, lda = leading(a)
    pb, ldb = leading(b)
    pc, ldc = leading(c)
    routine(LETTER[c.dtype.name] + "gemm", 13)(
        character(op_b),
        character(op_a),
        integer(n),
        integer(m),
        integer(k),
        scalar(alpha, c.dtype),
        pb,
        integer(ldb),
        pa,
        integer(lda),
        scalar(beta, c.dtype),
        pc,
        integer(ldc),
    )


def takes_rows(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> bool:
    """Whether kernels for ``dtype`` take an array as it is: elements of a row side by side, rows whole elements apart.

    Examples
    --------
    >>> a = np.zeros((4, 6))
    >>> takes_rows(a[:, 1:5], a.dtype), takes_rows(a.T, a.dtype), takes_rows(a.astype(">f8"), a.dtype)
    (True, False, False)
    """
    if array.dtype != dtype or not array.dtype.isnative:
        return False
    (rows, cols), (across, along) = array.shape, array.strides
    apart = across >= cols * array.itemsize and across % array.itemsize == 0
    return (along == array.itemsize or cols <= 1) and (apart or rows <= 1)


def _alike(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether kernels multiply two arrays: of one of their types, in the machine's byte order, which the name does not tell."""
    return a.dtype == b.dtype and a.dtype.isnative and a.dtype.name in LETTER


def product(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``a @ b`` as a new array, by the same BLAS as the kernels.

    NumPy and SciPy bring a BLAS each. For a while after a call its threads spin; a call of the other one in that time waits for
    cores (``benchmarks/two_blas.py`` measures it). So what alternates with kernels should not use ``@``.

    Parameters
    ----------
    a, b : ndarray
        By rows or by columns, others are copied. Of one of the kernels' dtypes; for any other mixture NumPy does it.

    Examples
    --------
    >>> a = np.arange(6.0).reshape(2, 3)
    >>> product(a, a.T)
    array([[ 5., 14.],
           [14., 50.]])
    """
    if not _alike(a, b):
        return np.asarray(a @ b)
    c = np.empty((a.shape[0], b.shape[1]), a.dtype)
    if c.size and a.shape[1]:
        (left, op_a), (right, op_b) = _by_rows(a), _by_rows(b)
        gemm(left, right, c, op_a=op_a, op_b=op_b)
    else:
        c[...] = 0
    return c


def adjoint_product(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``aᴴ @ b`` like :func:`product`, without a conjugated copy of ``a``, the larger of the two.

    Examples
    --------
    >>> a = np.array([[1.0 + 1j], [2.0]])
    >>> adjoint_product(a, a).real
    array([[6.]])
    """
    if a.dtype.kind != "c":
        return product(a.T, b)
    if not _alike(a, b):
        return np.asarray(a.conj().T @ b)
    flipped = np.empty((b.shape[1], a.shape[1]), a.dtype)  # (bᴴ a), of which the result is the adjoint
    if flipped.size and len(a):
        right, op = _by_rows(a)
        gemm(np.ascontiguousarray(b), right, flipped, op_a="H", op_b=op)
    else:
        flipped[...] = 0
    return flipped.conj().T


def _by_rows(a: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """An array as :func:`gemm` takes it, and the operation that it then needs."""
    for view, op in ((a, "N"), (a.T, "T")):
        if takes_rows(view, a.dtype):
            return view, op
    return np.ascontiguousarray(a), "N"


def hemv(a: np.ndarray[Any, Any], x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    """``y = a x`` for a symmetric (Hermitian) matrix, of which one triangle is read: half the bytes of a general product.

    Parameters
    ----------
    a : ndarray (n, n)
        Row-major; its lower triangle is read.
    x, y : ndarray (n,)
        Contiguous, of the same dtype.

    Examples
    --------
    >>> a = np.array([[2.0, np.nan], [1.0, 3.0]])
    >>> y = np.empty(2)
    >>> hemv(a, np.array([1.0, 2.0]), y)
    >>> y
    array([4., 7.])
    """
    # Column-major eyes see the transpose, which is the conjugate: conj(A) conj(x) = conj(A x).
    pa, lda = leading(a)
    complex_ = a.dtype.kind == "c"
    source = np.conjugate(x) if complex_ else x
    routine(LETTER[a.dtype.name] + ("hemv" if complex_ else "symv"), 10)(
        character("U"),
        integer(len(a)),
        scalar(1.0, a.dtype),
        pa,
        integer(lda),
        source.__array_interface__["data"][0],
        integer(1),
        scalar(0.0, a.dtype),
        y.__array_interface__["data"][0],
        integer(1),
    )
    if complex_:
        np.conjugate(y, out=y)


def rank_k(
    a: np.ndarray[Any, Any],
    c: np.ndarray[Any, Any],
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    op_a: str = "N",
    hermitian: bool = False,
    uplo: str = "L",
) -> None:
    """Lower triangle of ``c = alpha op(a) op(a)ᵀ + beta c`` (SYRK), or ``op(a)ᴴ`` instead of ``op(a)ᵀ`` (HERK).

    ``op_a="N"`` multiplies ``a`` by its transpose, any other value the transpose by ``a``. The strictly upper triangle
    of ``c`` is left alone; with ``uplo="U"`` it is the other way round.

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
    pa, lda = leading(a)
    pc, ldc = leading(c)
    herk = hermitian and c.dtype.kind == "c"
    real = np.dtype("float32" if c.dtype.itemsize == 8 else "float64") if herk else c.dtype
    routine(LETTER[c.dtype.name] + ("herk" if herk else "syrk"), 10)(
        character("U" if uplo == "L" else "L"),
        character(("H" if herk else "T") if op_a == "N" else "N"),
        integer(n),
        integer(k),
        scalar(alpha, real),
        pa,
        integer(lda),
        scalar(beta, real),
        pc,
        integer(ldc),
    )


def trsm(
    t: np.ndarray[Any, Any],
    x: np.ndarray[Any, Any],
    *,
    side: str = "L",
    uplo: str = "L",
    op: str = "N",
    unit: bool = False,
    alpha: complex = 1.0,
) -> None:
    """Solve with a triangle in place: ``x = alpha op(t)⁻¹ x`` (side ``"L"``) or ``x = alpha x op(t)⁻¹`` (side ``"R"``).

    Parameters
    ----------
    t : ndarray (m, m) or (n, n)
        Row-major tile; only its lower (``uplo="L"``) or upper (``"U"``) triangle is read, without the diagonal if ``unit``.
        A zero on the diagonal gives infinities, no error.
    x : ndarray (m, n)
        Row-major tile of the same dtype.

    Examples
    --------
    >>> t = np.array([[2.0, np.nan], [1.0, 4.0]])
    >>> x = np.array([[2.0], [9.0]])
    >>> trsm(t, x)
    >>> x
    array([[1.],
           [2.]])
    """
    _triangular("trsm", t, x, side, uplo, op, unit, alpha)


def trmm(
    t: np.ndarray[Any, Any],
    x: np.ndarray[Any, Any],
    *,
    side: str = "L",
    uplo: str = "L",
    op: str = "N",
    unit: bool = False,
    alpha: complex = 1.0,
) -> None:
    """Multiply by a triangle in place: ``x = alpha op(t) x`` (side ``"L"``) or ``x = alpha x op(t)`` (side ``"R"``).

    Parameters are those of :func:`trsm`.

    Examples
    --------
    >>> t = np.array([[2.0, np.nan], [1.0, 4.0]])
    >>> x = np.array([[1.0], [2.0]])
    >>> trmm(t, x)
    >>> x
    array([[2.],
           [9.]])
    """
    _triangular("trmm", t, x, side, uplo, op, unit, alpha)


def _triangular(
    name: str,
    t: np.ndarray[Any, Any],
    x: np.ndarray[Any, Any],
    side: str,
    uplo: str,
    op: str,
    unit: bool,
    alpha: complex,
) -> None:
    m, n = x.shape
    pt, ldt = leading(t)
    px, ldx = leading(x)
    routine(LETTER[x.dtype.name] + name, 11)(
        character(_OPPOSITE[side]),
        character(_MIRRORED[uplo]),
        character(op),
        character("U" if unit else "N"),
        integer(n),
        integer(m),
        scalar(alpha, x.dtype),
        pt,
        integer(ldt),
        px,
        integer(ldx),
    )
