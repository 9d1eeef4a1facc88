"""What is said about pivots that a factorisation or a solve cannot use; the same words on every device."""

from __future__ import annotations

import math

from pycauset.errors import NonFiniteError, NotPositiveDefiniteError, SingularMatrixError

__all__ = ["non_finite", "not_positive_definite", "singular"]


def not_positive_definite(pivot: int, value: float) -> NotPositiveDefiniteError:
    """The error for a Cholesky pivot (0-based, in the whole matrix) that is zero, negative or not finite.

    Examples
    --------
    >>> print(not_positive_definite(6, -0.25))
    the matrix is not positive definite: pivot 6 is -0.25, so the leading minor of order 7 is not positive; is the matrix \
symmetric (Hermitian)? If rounding is to blame, add a small multiple of the identity
    """
    if math.isfinite(value):
        return NotPositiveDefiniteError(
            f"the matrix is not positive definite: pivot {pivot} is {value:g}, so the leading minor of order {pivot + 1} is not "
            "positive; is the matrix symmetric (Hermitian)? If rounding is to blame, add a small multiple of the identity",
            pivot=pivot,
            value=value,
        )
    return NotPositiveDefiniteError(
        f"the matrix holds NaN or infinity, or elements so large that they overflow: pivot {pivot} came out as no number; "
        f"look at row {pivot} of the matrix, up to its diagonal",
        pivot=pivot,
        value=math.nan,
    )


def singular(index: int) -> SingularMatrixError:
    """The error for a zero on a triangle's diagonal, at ``index`` (0-based, in the whole matrix)."""
    return SingularMatrixError(
        f"the triangular matrix is singular: its diagonal is zero at index {index}; a unit diagonal is taken with "
        "unit_diagonal=True, a least-squares solution exists without this row and column",
        index=index,
    )


def non_finite(index: int, value: complex) -> NonFiniteError:
    """The error for NaN or infinity on a triangle's diagonal, at ``index`` (0-based, in the whole matrix)."""
    return NonFiniteError(
        f"the triangular matrix holds {value} on its diagonal at index {index}, where only finite numbers can be divided by"
    )
