"""Python's arithmetic and comparison operators, element by element, as `Matrix` has them."""

from __future__ import annotations

from typing import Any

from pycauset import operations

__all__ = ["Operators"]


class Operators:
    """``+ - * / == != < <= > >=`` by NumPy's rules; what is no array is left to Python.

    Comparisons give a boolean matrix. So a matrix, like an array, has no hash, and no truth value unless it has one element.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Any) -> Any:
        return operations.binary("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return operations.binary("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return operations.binary("subtract", self, other)

    def __rsub__(self, other: Any) -> Any:
        return operations.binary("subtract", other, self)

    def __mul__(self, other: Any) -> Any:
        return operations.binary("multiply", self, other)

    def __rmul__(self, other: Any) -> Any:
        return operations.binary("multiply", other, self)

    def __truediv__(self, other: Any) -> Any:
        return operations.binary("true_divide", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return operations.binary("true_divide", other, self)

    def __neg__(self: Any) -> Any:
        return operations.unary("negative", self)

    def __pos__(self: Any) -> Any:
        return operations.unary("positive", self)

    def __abs__(self: Any) -> Any:
        return operations.unary("absolute", self)

    def __eq__(self, other: Any) -> Any:
        return operations.binary("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return operations.binary("not_equal", self, other)

    def __lt__(self, other: Any) -> Any:
        return operations.binary("less", self, other)

    def __le__(self, other: Any) -> Any:
        return operations.binary("less_equal", self, other)

    def __gt__(self, other: Any) -> Any:
        return operations.binary("greater", self, other)

    def __ge__(self, other: Any) -> Any:
        return operations.binary("greater_equal", self, other)

    def aslinearoperator(self: Any) -> Any:
        """The matrix as a `scipy.sparse.linalg.LinearOperator`, for SciPy's own solvers; products stream what does not fit."""
        from pycauset.interop import linear_operator

        return linear_operator(self)
