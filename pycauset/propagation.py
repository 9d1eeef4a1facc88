"""How operations carry properties: pure functions over flags.

The rules hold in exact arithmetic for finite entries; booleans count as the integers 0 and 1. "Pattern" stands for
``is_zero``, ``is_diagonal``, ``is_[strictly_]upper_triangular``, ``is_[strictly_]lower_triangular`` and
``has_zero_diagonal``; "symmetry" for ``is_[skew_]symmetric`` and ``is_[skew_]hermitian``; "definite" for
``is_positive_[semi]definite``. What no line names becomes unknown. Known *falsehoods* survive transposition, an exact copy
and a change of sign only.

======================  =============================================================================================
result                  what is kept
======================  =============================================================================================
``A.T``, ``A.H``        all; upper and lower change places
``s A``                 pattern; (skew-)symmetric; (skew-)Hermitian for real s, each turned into the other for imaginary
                        s; definite for s > 0, semidefinite for s ≥ 0; unitary for s in {1, -1, i, -i}, orthogonal for
                        ±1 (1 alone in unsigned integers); everything for s = 1
``A + B``, ``A - B``    pattern and symmetry that both have; all of A if B is zero; ``+``: semidefinite that both are,
                        definite if one is; unit diagonal ± zero diagonal is unit, unit - unit is zero diagonal
``A ∘ B``               pattern of either; unit diagonal of both; (skew-)symmetric and (skew-)Hermitian by the rule of
                        signs; definite that both are (Schur)
``A B``                 zero of either; diagonal, triangular, permutation, unitary, orthogonal of both; strict if one of
                        two triangular is; unit diagonal of both if triangular and square; all of B if A is the identity
``A A.T``, ``A A.H``    as A B, and symmetric; Hermitian and semidefinite (definite if A is known to be invertible)
``A A``                 as A B, and symmetric of (skew-)symmetric, Hermitian of (skew-)Hermitian, definite of definite
``A.astype(t)``         all, if t holds every value of A; otherwise pattern, symmetry, unit diagonal, identity and
                        permutation; a real part of definite is definite; a truth value of skew-symmetric is symmetric
``A[rows, cols]``       zero; triangular as far as the cut allows, zero if the cut lies in the zero triangle; for
                        rows = cols also symmetry, diagonals and definite; unitary and orthogonal for rearrangements
``A[rows, cols] = X``   triangular and diagonals that the region does not touch, pattern if X is zero; symmetry of zeros
                        assigned to a principal block, symmetric of one diagonal element
======================  =============================================================================================

Every function takes closed flags (`Properties.flags`) and returns flags from which a new `Properties` is made, which closes
them for its own shape and dtype.
"""

from __future__ import annotations

import cmath
from typing import Any, Final, Literal

import numpy as np

from pycauset.properties import PROPERTIES, mask

__all__ = ["add", "assign", "astype", "matmul", "multiply", "scale", "subtract", "take", "transpose"]

_KNOWN: Final = mask(*PROPERTIES) // 3

ZERO: Final = mask("is_zero")
IDENTITY: Final = mask("is_identity")
PERMUTATION: Final = mask("is_permutation")
UPPER: Final = mask("is_upper_triangular")
LOWER: Final = mask("is_lower_triangular")
STRICTLY_UPPER: Final = mask("is_strictly_upper_triangular")
STRICTLY_LOWER: Final = mask("is_strictly_lower_triangular")
UNIT: Final = mask("has_unit_diagonal")
HOLLOW: Final = mask("has_zero_diagonal")
SYMMETRIC: Final = mask("is_symmetric")
SKEW: Final = mask("is_skew_symmetric")
HERMITIAN: Final = mask("is_hermitian")
SKEW_HERMITIAN: Final = mask("is_skew_hermitian")
UNITARY: Final = mask("is_unitary")
ORTHOGONAL: Final = mask("is_orthogonal")
DEFINITE: Final = mask("is_positive_definite")
SEMIDEFINITE: Final = mask("is_positive_semidefinite")

PATTERN: Final = ZERO | mask("is_diagonal") | UPPER | LOWER | STRICTLY_UPPER | STRICTLY_LOWER | HOLLOW
SYMMETRY: Final = SYMMETRIC | SKEW | HERMITIAN | SKEW_HERMITIAN


def _true(flags: int) -> int:
    """Only what is known to be true."""
    return (flags >> 1 & flags & _KNOWN) * 3


def _exchange(flags: int, a: int, b: int) -> int:
    """Let two properties change places."""
    shift = b.bit_length() - a.bit_length()
    moved = (flags & a) << shift | (flags & b) >> shift if shift > 0 else (flags & a) >> -shift | (flags & b) << -shift
    return flags & ~(a | b) | moved


def transpose(flags: int) -> int:
    """Of ``A.T`` and ``A.H``."""
    return _exchange(_exchange(flags, UPPER, LOWER), STRICTLY_UPPER, STRICTLY_LOWER)


def scale(flags: int, scalar: complex, *, unsigned: bool = False) -> int:
    """Of ``scalar * A``; in ``unsigned`` integers -1 is the largest number there is."""
    s = complex(scalar)
    if s == 1:
        return flags
    if not cmath.isfinite(s):
        return 0
    if s == -1:  # a bijection: what is not symmetric does not become so
        return flags & (PATTERN | SYMMETRY | (0 if unsigned else UNITARY | ORTHOGONAL))
    true = _true(flags)
    kept = true & (PATTERN | SYMMETRIC | SKEW)
    if s.imag == 0:
        kept |= true & (HERMITIAN | SKEW_HERMITIAN)
        kept |= true & SEMIDEFINITE if s.real >= 0 else 0
        kept |= true & DEFINITE if s.real > 0 else 0
    elif s.real == 0:
        kept |= _exchange(true & (HERMITIAN | SKEW_HERMITIAN), HERMITIAN, SKEW_HERMITIAN)
    if s in (1j, -1j):
        kept |= true & UNITARY
    return kept


def add(a: int, b: int) -> int:
    """Of ``A + B`` for equal shapes; booleans are added as integers."""
    ta, tb = _true(a), _true(b)
    if ta & ZERO:
        return b
    if tb & ZERO:
        return a
    kept = ta & tb & (PATTERN | SYMMETRY | SEMIDEFINITE)
    if ta & tb & SEMIDEFINITE:
        kept |= (ta | tb) & DEFINITE
    if (ta & UNIT and tb & HOLLOW) or (ta & HOLLOW and tb & UNIT):
        kept |= UNIT
    return kept


def subtract(a: int, b: int, *, unsigned: bool = False) -> int:
    """Of ``A - B`` for equal shapes; ``unsigned`` as in `scale`."""
    ta, tb = _true(a), _true(b)
    if ta & ZERO:
        return scale(b, -1, unsigned=unsigned)
    if tb & ZERO:
        return a
    kept = ta & tb & (PATTERN | SYMMETRY)
    if ta & UNIT and tb & HOLLOW:
        kept |= UNIT
    if ta & UNIT and tb & UNIT:
        kept |= HOLLOW
    return kept


def multiply(a: int, b: int) -> int:
    """Of ``A * B``, element by element, for equal shapes."""
    ta, tb = _true(a), _true(b)
    kept = (ta | tb) & PATTERN | ta & tb & (UNIT | SEMIDEFINITE | DEFINITE)
    for even, odd in ((SYMMETRIC, SKEW), (HERMITIAN, SKEW_HERMITIAN)):
        if (ta & even and tb & even) or (ta & odd and tb & odd):
            kept |= even
        if (ta & even and tb & odd) or (ta & odd and tb & even):
            kept |= odd
    return kept


def matmul(a: int, b: int, *, square: bool, relation: Literal["same", "transpose", "adjoint"] | None = None) -> int:
    """Of ``A @ B``.

    Parameters
    ----------
    a, b : int
        Flags of the operands.
    square : bool
        Whether both are square.
    relation : {"same", "transpose", "adjoint"}, optional
        If B is A itself, ``A.T`` or ``A.H``. For a real matrix say "adjoint", which tells more than "transpose".
    """
    ta, tb = _true(a), _true(b)
    if ta & IDENTITY:
        return b
    if tb & IDENTITY:
        return a
    both = ta & tb
    kept = both & (PERMUTATION | UNITARY | ORTHOGONAL) | (ta | tb) & ZERO
    for triangle, strict in ((UPPER, STRICTLY_UPPER), (LOWER, STRICTLY_LOWER)):
        if both & triangle:
            kept |= triangle | (ta | tb) & strict
            # in a rectangular product the diagonal of C may be longer than those of A and B
            kept |= both & UNIT if square else 0
    if relation == "same":
        kept |= SYMMETRIC if ta & (SYMMETRIC | SKEW) else 0
        kept |= HERMITIAN if ta & (HERMITIAN | SKEW_HERMITIAN) else 0
        kept |= SEMIDEFINITE if ta & HERMITIAN else 0
        kept |= ta & DEFINITE
    elif relation == "transpose":
        kept |= SYMMETRIC
    elif relation == "adjoint":
        invertible = ta & (DEFINITE | UNITARY | ORTHOGONAL) or (square and ta & UNIT and ta & (UPPER | LOWER))
        kept |= HERMITIAN | SEMIDEFINITE | (DEFINITE if invertible else 0)
    return kept


def astype(flags: int, old: np.dtype[Any], new: np.dtype[Any]) -> int:
    """Of a conversion between element types; complex to real takes the real part, anything to bool asks for x != 0."""
    if _lossless(old, new):
        return flags
    true = _true(flags)
    kept = true & (PATTERN | UNIT | IDENTITY | PERMUTATION)
    even, odd = true & (SYMMETRIC | HERMITIAN), true & (SKEW | SKEW_HERMITIAN)
    if new.kind == "b":
        return kept | (SYMMETRIC if even or odd else 0)
    if new.kind == "c":
        return kept | even | odd
    kept |= SYMMETRIC if even else 0
    kept |= SKEW if odd and new.kind == "f" else 0  # the most negative integer has no opposite
    if old.kind == "c" and new.kind == "f" and 2 * new.itemsize >= old.itemsize:
        kept |= true & (DEFINITE | SEMIDEFINITE)
    return kept


def _lossless(old: np.dtype[Any], new: np.dtype[Any]) -> bool:
    """Whether `new` holds every value of `old`: NumPy calls int64 to float64 safe, which it is not above 2**53."""
    if old.kind in "iu" and new.kind in "fc":
        return 8 * old.itemsize <= np.finfo(new).nmant + 1
    return np.can_cast(old, new, "safe")


def take(flags: int, shape: tuple[int, int], rows: range, cols: range) -> int:
    """Of the sub-matrix ``A[rows, cols]``.

    Parameters
    ----------
    flags : int
    shape : tuple of int
        Of A.
    rows, cols : range
        Indices from 0, as ``range(*slice.indices(n))`` gives them; steps may be negative.
    """
    if not rows or not cols:
        return 0
    if rows == range(shape[0]) and cols == range(shape[1]):
        return flags
    true = _true(flags)
    kept = true & ZERO
    # A[r, c] is known to be zero where r - c is at least `upper`, or at most -`lower`
    upper = 0 if true & STRICTLY_UPPER else 1 if true & UPPER else None
    lower = 0 if true & STRICTLY_LOWER else 1 if true & LOWER else None
    everywhere = -len(cols)
    for result, below, offset in (
        (ZERO, True, everywhere),
        (UPPER, True, 1),
        (STRICTLY_UPPER, True, 0),
        (LOWER, False, 1),
        (STRICTLY_LOWER, False, 0),
    ):
        least, most = _differences(rows, cols, offset) if below else tuple(-d for d in reversed(_differences(cols, rows, offset)))
        nothing_there = least > most  # a single row is upper triangular whatever it holds
        if nothing_there or (upper is not None and least >= upper) or (lower is not None and most <= -lower):
            kept |= result
    if rows == cols:
        kept |= true & (SYMMETRY | UNIT | HOLLOW | DEFINITE | SEMIDEFINITE)
    if (len(rows), len(cols)) == shape:
        kept |= true & (PERMUTATION | UNITARY | ORTHOGONAL)
    return kept


def _differences(rows: range, cols: range, offset: int) -> tuple[float, float]:
    """Least and greatest ``rows[i] - cols[j]`` over ``i >= j + offset``; (inf, -inf) if there is no such pair.

    A linear function over a convex polygon with integer corners: looking at the corners is enough.
    """
    m, n = len(rows), len(cols)
    corners = ((0, 0), (0, n - 1), (m - 1, 0), (m - 1, n - 1))
    cuts = ((offset, 0), (offset + n - 1, n - 1), (0, -offset), (m - 1, m - 1 - offset))
    found = [rows[i] - cols[j] for i, j in corners + cuts if 0 <= i < m and 0 <= j < n and i >= j + offset]
    return (min(found), max(found)) if found else (float("inf"), float("-inf"))


def assign(flags: int, rows: range, cols: range, *, zeros: bool = False) -> int:
    """Of A after ``A[rows, cols] = X``, with X unknown or (`zeros`) all 0.

    If the region is all of A, the properties are those of X, and nothing is left to ask here.
    """
    if not rows or not cols:
        return flags
    true = _true(flags)
    r0, r1 = min(rows[0], rows[-1]), max(rows[0], rows[-1])
    c0, c1 = min(cols[0], cols[-1]), max(cols[0], cols[-1])
    if zeros:
        kept = true & PATTERN
    else:
        kept = true & UPPER if r1 <= c0 else 0
        kept |= true & STRICTLY_UPPER if r1 < c0 else 0
        kept |= true & LOWER if r0 >= c1 else 0
        kept |= true & STRICTLY_LOWER if r0 > c1 else 0
    if max(r0, c0) > min(r1, c1):  # off the diagonal
        kept |= true & (UNIT | HOLLOW)
    if zeros and rows in (cols, cols[::-1]):
        kept |= true & SYMMETRY
    if r0 == r1 == c0 == c1:
        kept |= true & SYMMETRIC
    return kept
