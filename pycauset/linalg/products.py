"""Products, norms and traces of anything that can be a matrix."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pycauset import interop, operations
from pycauset.errors import DtypeError, OverlapError, ShapeError
from pycauset.linalg.operands import dimensions
from pycauset.matrix import FAST, Matrix, asmatrix
from pycauset.properties import Properties
from pycauset.solver import is_small
from pycauset.storage import TileStore, create_store
from pycauset.tiling import Rect

if TYPE_CHECKING:
    from pycauset.solver import Factor

__all__ = ["factor_of", "matmul", "norm", "trace"]

Array = np.ndarray[Any, Any]
_SMALL_ELEMENTS: Final = 1 << 20


def matmul(
    a: Any,
    b: Any,
    out: Any = None,
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Matrix product ``a @ b`` of operands that may lie in RAM, on disk or nowhere, larger than memory or not.

    Element types are promoted as by ``np.result_type`` to float32, float64, complex64 or complex128. Booleans times
    booleans give exact int64 counts (NumPy gives a logical or). Products of other integers are refused: convert one.
    A large matrix that is known to be triangular takes half the operations.

    Parameters
    ----------
    a, b : Matrix or array_like (m, k) and (k, n)
        One-dimensional operands follow NumPy's rules: ``(m, k) @ (k,)`` gives ``(m,)``.
    out : Matrix or ndarray (m, n), or path, optional
        Where the product goes. A path becomes a Zarr folder, or a ``.npy`` file by its suffix; it appears when the product
        is finished, and must not exist. A product with a vector is stored as a column there. A Zarr folder or ``.npy`` file
        given as a Matrix does not open until the product is finished, nor does a local array of the zarr library; any other
        array (an HDF5 dataset, a memory map, an array in RAM) holds a mixture if the work fails.
    memory, gpu_memory : int or str, optional
        Bytes that the operation may take beyond what the process holds already: ``"2GB"``. Default: the settings, else
        what is free.
    progress : bool or callable, optional
        See `pycauset.progress.reporter`.

    Returns
    -------
    Matrix (m, n), ndarray (m,) or (n,), or scalar
        ``out`` if it was a matrix or an array; a path comes back opened. Without ``out`` the product lies in RAM if there
        is room, else in a scratch store that goes with its last reference.

    Raises
    ------
    ShapeError, DtypeError
        If the operands do not fit together, or ``out`` does not fit the product.
    OverlapError
        If ``out`` shares storage with an operand.
    MemoryLimitError
        If a limit is too small for any plan; the message has the numbers.
    StoreError
        If a store cannot be read or written.

    Examples
    --------
    >>> matmul(np.eye(2), [[1.0, 2.0], [3.0, 4.0]]).to_numpy()
    array([[1., 2.],
           [3., 4.]])
    """
    if progress is not None:
        from pycauset.linalg.results import check_options

        check_options(progress)
    if out is None and memory is None and gpu_memory is None:  # limits are for the solver to check
        quick = _quick_product(a, b)
        if quick is not None:
            return quick
    left, right = dimensions("matmul", a, "first"), dimensions("matmul", b, "second")
    x = asmatrix(a)
    x = x.T if left == 1 else x
    y = asmatrix(b)
    if x.shape[1] != y.shape[0]:
        shapes = tuple(np.shape(obj) if isinstance(obj, (list, tuple)) else tuple(obj.shape) for obj in (a, b))
        raise ShapeError(
            f"matmul: shapes {shapes[0]} and {shapes[1]} do not fit: {x.shape[1]} columns meet {y.shape[0]} rows, "
            "which must be equal" + ("; a vector as a Matrix is a column: write a.T @ b" if x.shape == (y.shape[0], 1) else "")
        )
    if left == 1 or right == 1:
        return _vector_product(x, y, left, right, out, memory, gpu_memory, progress)
    if isinstance(out, (str, os.PathLike)):
        return _to_path(x, y, out, memory, gpu_memory, progress)
    flags = operations.product_flags(x, y)
    if out is None:
        array = _small_product(x, y) if memory is None and gpu_memory is None else None
        if array is not None:
            return Matrix._of_array(array, flags)
        return Matrix._of_store(_multiply(x, y, None, memory, gpu_memory, progress), "N", flags)
    target = _out(out)
    if target.op == "T":  # (A B)ᵀ = Bᵀ Aᵀ, straight into the store
        _multiply(y.T, x.T, target.store, memory, gpu_memory, progress)
    elif target.op == "N":
        _multiply(x, y, target.store, memory, gpu_memory, progress)
    else:
        raise ShapeError(f"matmul: out is {out!r}; a conjugated view cannot take a result, give the matrix itself")
    if isinstance(out, Matrix):
        out.properties = Properties(out.shape, out.dtype, flags)
    return out


def _quick_product(a: Any, b: Any) -> Any:
    """Small products in RAM, which cost less than thinking about them; None for all others."""
    x = a if type(a) is np.ndarray else a._array if type(a) is Matrix else None
    y = b if type(b) is np.ndarray else b._array if type(b) is Matrix else None
    if x is None or y is None or x.dtype != y.dtype or x.dtype not in FAST or not (0 < x.ndim < 3 and 0 < y.ndim < 3):
        return None
    k = x.shape[-1]
    m, n = x.size // k if k else 0, y.size // k if k else 0
    if k != y.shape[0] or k == 0 or m * n > _SMALL_ELEMENTS or not is_small(m, n, k):
        return None
    product = np.matmul(x, y)
    if product.ndim < 2:
        return product
    if type(a) is Matrix and type(b) is Matrix:
        return Matrix._of_array(product, operations.product_flags(a, b))
    if type(a) is np.ndarray and type(b) is np.ndarray:  # arrays have no properties: all to know is whether they are one
        gram = x.strides == y.strides[::-1] and x.shape == y.shape[::-1] and _starts(x) == _starts(y)
        return Matrix._of_array(product, _gram_flags(x.dtype) if gram else 0)
    known = operations.share_base(x, y) or any(type(obj) is Matrix and obj._flags() for obj in (a, b))
    return Matrix._of_array(product, operations.product_flags(asmatrix(a), asmatrix(b)) if known else 0)


def _starts(x: Array) -> int:
    """Where an array's elements begin."""
    return x.__array_interface__["data"][0]  # type: ignore[no-any-return]


@functools.cache
def _gram_flags(dtype: np.dtype[Any]) -> int:
    """What is known of ``x @ x.T``."""
    x = np.ones((2, 3), dtype)
    return operations.product_flags(asmatrix(x), asmatrix(x.T))


def _out(out: Any) -> Matrix:
    if not isinstance(out, Matrix) and not hasattr(out, "shape"):
        raise DtypeError(f"matmul: out is a {type(out).__qualname__}; it must be a Matrix, an array, or a path")
    if len(out.shape) != 2:
        raise ShapeError(f"matmul: out has shape {tuple(out.shape)}; it must have two dimensions")
    return asmatrix(out)


def factor_of(a: Matrix) -> Factor:
    """A matrix as the solver takes it."""
    from pycauset.solver import Factor

    if a.op == "C":  # kernels know transposes, but no conjugation by itself
        a = operations.copied(a.store, a.op, a.dtype, a._flags(), owner="conjugate")
    return Factor(a.store, a.op, a._flags())


def _multiply(a: Matrix, b: Matrix, out: TileStore | None, memory: Any, gpu_memory: Any, progress: Any) -> TileStore:
    from pycauset.solver import multiply

    return multiply(factor_of(a), factor_of(b), out=out, memory=memory, gpu_memory=gpu_memory, progress=progress)


def _small_product(a: Matrix, b: Matrix) -> Array | None:
    """The product by one NumPy call, if it is so small that nothing else could be faster, wherever the operands lie."""
    (m, k), n = a.shape, b.shape[1]
    if not is_small(m, n, k) or max(m * n, m * k, k * n) > _SMALL_ELEMENTS:
        return None
    from pycauset.solver import layout_of

    layout = layout_of(factor_of(a), factor_of(b))
    x, y = (f.to_numpy().astype(layout.compute, copy=False) for f in (a, b))
    product: Array = np.matmul(x, y)
    return product.astype(layout.dtype, copy=False)


def _vector_product(x: Matrix, y: Matrix, left: int, right: int, out: Any, memory: Any, gpu_memory: Any, progress: Any) -> Any:
    """Products with a vector: NumPy arrays, in RAM; a column in a store where ``out`` is a path."""
    if isinstance(out, (str, os.PathLike)) and not left == right == 1:
        x, y = (x, y) if right == 1 else (y.T, x.T)
        return _to_path(x, y, out, memory, gpu_memory, progress)
    array = _small_product(x, y)
    if array is None:
        store = _multiply(x, y, None, memory, gpu_memory, progress)
        whole = Rect(0, store.shape[0], 0, store.shape[1])
        array = store.view(whole)
        if array is None:
            array = np.empty(store.shape, store.dtype)
            store.read(whole, array)
    array = array[0, 0] if left == right == 1 else array[0] if left == 1 else array[:, 0]
    if out is None:
        return array
    if not isinstance(out, np.ndarray) or out.shape != array.shape:
        place = "" if left == right == 1 else ", or a path"
        raise ShapeError(f"matmul: out must be an array of shape {array.shape}{place} for a product with a vector")
    if not np.can_cast(array.dtype, out.dtype, "same_kind"):
        raise DtypeError(f"matmul: the product is {array.dtype}, which out of {out.dtype} cannot hold")
    out[...] = array
    return out


def _to_path(x: Matrix, y: Matrix, path: Any, memory: Any, gpu_memory: Any, progress: Any) -> Matrix:
    """The product in a new store at ``path``, stored as one triangle if it is symmetric or Hermitian by construction."""
    from pycauset.solver import layout_of

    a, b = factor_of(x), factor_of(y)
    layout = layout_of(a, b)
    plain = os.fspath(path).endswith(".npy")
    for operand in (x, y):
        if operand.store.lies_at(path):
            raise OverlapError(f"matmul: out={os.fspath(path)!r} is where {operand!r} lies, still to be read; give another path")
    flags = operations.product_flags(x, y)
    claims = Properties(layout.shape, layout.dtype, flags).to_json()
    store = create_store(
        path,
        layout.shape,
        layout.dtype,
        chunks=None if plain else layout.chunks,
        structure="full" if plain else layout.structure,
        attributes={"properties": claims} if claims else None,
    )
    from pycauset.solver import multiply

    return Matrix(multiply(a, b, out=store, memory=memory, gpu_memory=gpu_memory, progress=progress))


def norm(
    a: Any,
    ord: str | float | None = "fro",
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
) -> float:
    """Norm of a matrix in double precision: "fro", 1, 2, inf or "max"; see `Matrix.norm`.

    Parameters
    ----------
    a : Matrix or array_like (m, n)
    ord : {"fro", 1, -1, 2, inf, -inf, "max"}
    memory, gpu_memory : int or str, optional
        Bytes that it may take: the 2-norm is an iteration, the others make one pass, a few tiles at a time.

    Raises
    ------
    ConfigError, MemoryLimitError, NonFiniteError

    Examples
    --------
    >>> norm([[3.0, 0.0], [0.0, 4.0]]), round(norm([[3.0, 0.0], [0.0, 4.0]], 2, memory="1GB"), 12)
    (5.0, 4.0)
    """
    return interop.norm(asmatrix(a), ord, memory, gpu_memory)


def trace(a: Any) -> Any:
    """Sum of the main diagonal of a matrix (m, n), a NumPy scalar.

    Examples
    --------
    >>> trace(np.eye(3))
    np.float64(3.0)
    """
    return asmatrix(a).trace()
