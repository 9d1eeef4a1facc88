"""`Matrix`: a two-dimensional array that may lie anywhere and need not fit in memory, with NumPy's operators."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset import interop, operations, propagation
from pycauset.errors import (
    ConfigError,
    DtypeError,
    ShapeError,
    StoreError,
    StorePermissionError,
)
from pycauset.indexing import SelectedStore, gather, scatter, select
from pycauset.operators import Operators
from pycauset.properties import STRUCTURES, Properties, mask
from pycauset.solver import is_small
from pycauset.storage import ArrayStore, TileStore, element_type
from pycauset.tiling import Rect

__all__ = ["Matrix", "asmatrix"]

Array = np.ndarray[Any, Any]

#: Element types that np.matmul may have at once, by identity of NumPy's own dtype objects.
FAST: Final = frozenset(np.dtype(name) for name in ("float32", "float64", "complex64", "complex128"))
_SLICE_BYTES: Final = 64 << 20
_SMALL_ELEMENTS: Final = 1 << 20
_TRANSPOSED: Final = {"N": "T", "T": "N", "H": "C", "C": "H"}
_CONJUGATED: Final = {"N": "C", "C": "N", "T": "H", "H": "T"}


class Matrix(Operators):
    """A matrix in RAM, on disk, behind another library, or computed where it is needed.

    Made by `pycauset.open`, `asmatrix`, `from_function`, `zeros`, `random` and others, and by operations on matrices.
    Operators work as in NumPy and stream what does not fit in memory. ``A.T``, ``A.H`` and ``A.conj()`` are views: they
    cost nothing, and writing to one changes the other. Results that are vectors are NumPy arrays.

    Parameters
    ----------
    data : array_like or TileStore (m, n)
        What `asmatrix` takes. One dimension becomes a column.

    Examples
    --------
    >>> A = Matrix([[1.0, 2.0], [3.0, 4.0]])
    >>> A
    <Matrix 2 x 2 float64 in RAM>
    >>> (A @ A.T).to_numpy()
    array([[ 5., 11.],
           [11., 25.]])
    >>> A @ [1.0, 1.0], A.norm("max")
    (array([3., 7.]), 4.0)
    """

    __slots__ = ("__weakref__", "_array", "_claims", "_op", "_properties", "_store", "_views")

    _store: TileStore | None
    _array: Array | None
    _op: str
    _claims: int
    _properties: Properties | None
    _views: list[weakref.ref[Matrix]] | None

    def __init__(self, data: Any) -> None:
        store = operations.store_of(data)
        claims = 0
        stored = store.attributes.get("properties")
        if isinstance(stored, dict):
            claims = Properties.from_json(stored, store.shape, store.dtype).claims
        if store.structure in STRUCTURES:
            claims |= mask(STRUCTURES[store.structure])  # the other triangle is computed from the one that is stored
        self._set(store, "N", claims)

    def _set(self, store: TileStore, op: str, claims: int) -> None:
        if store.dtype.kind != "c":
            op = {"H": "T", "C": "N"}.get(op, op)
        view = store.view(Rect(0, store.shape[0], 0, store.shape[1])) if op in "NT" else None
        self._store, self._op, self._claims = store, op, claims
        self._array = view if op == "N" or view is None else view.T
        self._properties = self._views = None

    @classmethod
    def _of_store(cls, store: TileStore, op: str = "N", claims: int = 0) -> Matrix:
        matrix = cls.__new__(cls)
        matrix._set(store, op, claims)
        return matrix

    @classmethod
    def _of_array(cls, array: Array, claims: int = 0) -> Matrix:
        """The quick way in for a fresh array (m, n): its store is made when somebody asks."""
        matrix = cls.__new__(cls)
        matrix._array, matrix._claims, matrix._op = array, claims, "N"
        matrix._store = matrix._properties = matrix._views = None
        return matrix

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def store(self) -> TileStore:
        """Where the elements lie; ``op`` says how they are taken.

        Raises
        ------
        StoreError
            If the matrix was closed.
        """
        if self._store is None:
            if self._array is None:
                raise StoreError("the matrix is closed; open it again")
            self._store = ArrayStore(self._array)
        return self._store

    @property
    def op(self) -> str:
        """``"N"`` as stored, ``"T"`` transposed, ``"H"`` conjugate transposed, ``"C"`` conjugated."""
        return self._op

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self._array is not None:
            rows, cols = self._array.shape
            return rows, cols
        rows, cols = self.store.shape
        return (cols, rows) if self._op in "TH" else (rows, cols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.store.dtype if self._array is None else self._array.dtype

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, wherever they lie."""
        return self.size * self.dtype.itemsize

    @property
    def properties(self) -> Properties:
        """What is known about the matrix: ``A.properties.is_symmetric`` is True, False or None.

        Setting a property is a claim; it is believed, not checked. Assigning a mapping replaces all claims. Operations
        carry properties to their results by the rules of `pycauset.propagation`.
        """
        if self._properties is None:
            self._properties = Properties(self.shape, self.dtype, self._claims)
        return self._properties

    @properties.setter
    def properties(self, values: Properties | Mapping[str, bool | None]) -> None:
        fresh = Properties(self.shape, self.dtype, values.claims if isinstance(values, Properties) else 0)
        if not isinstance(values, Properties):
            if not isinstance(values, Mapping):
                raise ConfigError(f"properties is set to {values!r}; give a dict of claims such as {{'is_symmetric': True}}")
            fresh.update(values)
        self._properties = fresh

    @property
    def properties_flags(self) -> int:
        """The properties as one uint64, two bits each (see `Properties.flags`)."""
        return self.properties.flags

    def _flags(self) -> int:
        """Flags for the rules; 0 at no cost when nothing was claimed."""
        if self._properties is None and not self._claims:
            return 0
        return self.properties.flags

    # ---- views -------------------------------------------------------------------------------------------------------

    def _view(self, op: str, flags: int) -> Matrix:
        view = Matrix._of_store(self.store, op, flags)
        if self._views is None:
            self._views = [weakref.ref(self)]
        self._views[:] = [known for known in self._views if known() is not None]
        self._views.append(weakref.ref(view))
        view._views = self._views
        return view

    @property
    def T(self) -> Matrix:
        """The transpose, a view."""
        return self._view(_TRANSPOSED[self._op], propagation.transpose(self._flags()))

    @property
    def H(self) -> Matrix:
        """The conjugate transpose, a view."""
        return self._view(_CONJUGATED[_TRANSPOSED[self._op]], propagation.transpose(self._flags()))

    def conj(self) -> Matrix:
        """The complex conjugate, a view."""
        return self._view(_CONJUGATED[self._op], self._flags())

    conjugate = conj

    def transpose(self) -> Matrix:
        """As `T`."""
        return self.T

    @property
    def real(self) -> Matrix:
        """The real part: a copy of complex matrices, the matrix itself otherwise."""
        return self if self.dtype.kind != "c" else operations.part(self, "real")

    @property
    def imag(self) -> Matrix:
        """The imaginary part, a copy; zeros for real matrices."""
        return operations.part(self, "imag")

    # ---- arithmetic --------------------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> Any:
        a = self._array
        if a is not None and type(other) is Matrix:
            b = other._array
            if b is not None and a.dtype == b.dtype and a.dtype in FAST:
                m, k = a.shape
                n = b.shape[1]
                if k == b.shape[0] and is_small(m, n, k) and m * n <= _SMALL_ELEMENTS:
                    return Matrix._of_array(np.matmul(a, b), operations.product_flags(self, other))
        return operations.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return operations.matmul(other, self)

    def norm(self, ord: str | float | None = "fro") -> float:
        """A norm in double precision, without overflow on the way.

        Parameters
        ----------
        ord : {"fro", 1, -1, 2, inf, -inf, "max"}
            Frobenius; largest and least absolute sum of a column, of a row; largest singular value (2, an iteration), element.

        Raises
        ------
        ConfigError
            For any other norm.

        Examples
        --------
        >>> Matrix([[3.0, 0.0], [-4.0, 0.0]]).norm(), Matrix([[3.0, 0.0], [-4.0, 0.0]]).norm(1)
        (5.0, 7.0)
        """
        return interop.norm(self, ord)

    def trace(self) -> Any:
        """Sum of the main diagonal, a NumPy scalar."""
        return operations.trace(self)

    def sum(self, axis: int | tuple[int, ...] | None = None, dtype: DTypeLike | None = None, *, keepdims: bool = False) -> Any:
        """Sum of all elements, of each column (axis 0) or of each row (axis 1), kept in double precision on the way.

        Parameters
        ----------
        axis : {None, 0, 1}, or a tuple of them
        dtype : dtype, optional
            Of the result; by default NumPy's: integers and booleans give 64-bit integers, other types their own.
        keepdims : bool
            Give an array of two dimensions, with length 1 along what was summed.

        Returns
        -------
        scalar or ndarray (n,), (m,) or of two dimensions

        Raises
        ------
        ConfigError, DtypeError
            If there is no such axis, or the elements do not fit that type.
        """
        return operations.total(self, axis, dtype, keepdims)

    def all(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Any:
        """Whether all elements are nonzero, in the whole matrix or along an axis: ``(A == B).all()``."""
        found, size = operations.count(self, axis, keepdims)
        return found == size

    def any(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Any:
        """Whether any element is nonzero, in the whole matrix or along an axis."""
        return operations.count(self, axis, keepdims)[0] != 0

    # ---- elements ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Elements by NumPy's notation, always a copy.

        One element is a NumPy scalar, one row or column an array of one dimension. A block is a NumPy array up to
        64 MiB and a Matrix beyond.
        """
        chosen = select(key, self.shape)
        if all(chosen.drop) and self._array is not None:
            return self._array[chosen.rows[0], chosen.cols[0]]
        nbytes = len(chosen.rows) * len(chosen.cols) * self.dtype.itemsize
        if nbytes > _SLICE_BYTES and not any(chosen.drop):
            source = SelectedStore(self.store, self._op, chosen)
            flags = propagation.take(self._flags(), self.shape, *chosen.ranges) if chosen.ranges else 0
            return operations.copied(source, "N", self.dtype, flags, owner="copy of a block")
        out = np.empty(chosen.shape, self.dtype)
        gather(self.store, self._op, chosen.rows, chosen.cols, out)
        return out[0, 0] if all(chosen.drop) else out.reshape(chosen.result_shape)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write elements through to the store. What is assigned is converted as by ``astype``.

        Raises
        ------
        ShapeError, DtypeError
            If the value does not fit, or is complex and the matrix real.
        StorePermissionError
            If the matrix is computed, read-only, or stored as one triangle: ``copy()`` makes a writable one.
        OverlapError
            If the value is a matrix that shares storage with this one.
        """
        chosen = select(key, self.shape)
        store = self.store
        if not store.writable or store.structure != "full":
            why = "read-only" if not store.writable else f"stored as {store.structure}, one triangle only"
            raise StorePermissionError(f"{self!r} is {why}; assign to a copy: B = A.copy()")
        values = operations.assigned(self, chosen, value)
        from pycauset.evaluate import unfinished

        with unfinished(store):
            scatter(store, self._op, chosen.rows, chosen.cols, values)
            operations.forget(self, chosen, zeros=np.isscalar(value) and value == 0)
            if "properties" in store.attributes:
                store.attributes["properties"] = self._base_properties().to_json()

    def _base_properties(self) -> Properties:
        """The properties of the store itself, whatever view of it this is."""
        flags = self.properties.claims
        if self._op in "TH":
            flags = propagation.transpose(flags)
        return Properties(self.store.shape, self.dtype, flags)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        step = max(1, min(self.shape[0], _SLICE_BYTES // max(1, 16 * self.shape[1] * self.dtype.itemsize)))
        for start in range(0, self.shape[0], step):
            rows = range(start, min(start + step, self.shape[0]))
            band = np.empty((len(rows), self.shape[1]), self.dtype)
            gather(self.store, self._op, rows, range(self.shape[1]), band)
            yield from band.copy() if step == 1 else band

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(f"the truth value of a matrix of {self.size} elements is ambiguous; ask for A.norm('max') != 0")
        return bool(self[0, 0])

    # ---- conversions -------------------------------------------------------------------------------------------------

    def to_numpy(self, force: bool = False) -> NDArray[Any]:
        """The matrix as a NumPy array; without a copy if it lies in RAM.

        Parameters
        ----------
        force : bool
            Load it even beyond the setting ``to_numpy_limit``, by default half of the free RAM.

        Raises
        ------
        MemoryLimitError
            If it is larger than the limit; the message has the numbers.
        """
        if self._array is not None:
            return self._array
        return operations.loaded(self, force)

    def astype(self, dtype: DTypeLike) -> Matrix:
        """Convert the elements: the matrix itself if it has that type already, else a copy.

        Raises
        ------
        DtypeError
            If the type cannot be that of a matrix, or complex numbers should become real (take ``A.real``).
        """
        new = element_type(dtype, "the result of astype")
        if new == self.dtype:
            return self
        if self.dtype.kind == "c" and new.kind not in "cb":
            raise DtypeError(f"astype from {self.dtype} to {new} would lose the imaginary part; take A.real first")
        flags = propagation.astype(self._flags(), self.dtype, new)
        return operations.copied(self.store, self._op, new, flags, owner=f"astype {new}")

    def copy(self) -> Matrix:
        """A writable copy with all elements stored, in RAM if there is room, else in a scratch store."""
        return operations.copied(self.store, self._op, self.dtype, self._flags(), owner="copy")

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        from pycauset.files import reduced

        return reduced(self)

    def __deepcopy__(self, memo: Any) -> Matrix:
        return self.copy()

    def save(self, path: str | os.PathLike[str], checksum: bool = False, *, overwrite: bool = False) -> None:
        """Write the matrix to disk; see `pycauset.save`."""
        from pycauset.files import save

        save(path, self, checksum=checksum, overwrite=overwrite)

    def close(self) -> None:
        """Release what the matrix holds, and discard an unfinished output.

        The matrix cannot be used any more. Its views (``A.T``) hold what they need themselves and can.
        """
        store, self._store, self._array = self._store, None, None
        if store is not None:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return interop.array(self, dtype, copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return interop.array_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return interop.array_function(function, args, kwargs)

    def __dlpack__(self, **options: Any) -> Any:
        return interop.in_memory(self).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = interop.in_memory(self).__dlpack_device__()
        return int(kind), int(number)

    def __repr__(self) -> str:
        if self._store is None and self._array is None:
            return "<Matrix, closed>"
        where = "in RAM" if self._array is not None else f"in a {type(self.store).__name__}"
        if self.store.path is not None:
            where = f"at {os.fspath(self.store.path)!r}"
        elif type(self.store).__name__ == "FunctionStore":
            where = "computed"
        view = {"N": "", "T": " transposed", "H": " conjugate transposed", "C": " conjugated"}[self._op]
        return f"<Matrix {self.shape[0]} x {self.shape[1]} {self.dtype}{view} {where}>"


def asmatrix(obj: Any, **properties: bool | None) -> Matrix:
    """A matrix from anything that can be one, without copying: arrays, memory maps, zarr and HDF5 arrays, nested lists.

    Parameters
    ----------
    obj : array_like (m, n) or (n,)
        Or any object with ``shape``, ``dtype`` and ``[rows, columns]``. A Matrix is returned as it is. One dimension
        becomes a column (n, 1), whose transpose is the row: ``asmatrix(v).T @ A``. Products take vectors by NumPy's rules
        as they are: ``v @ A``, ``A @ v`` and ``pycauset.matmul(v, v)`` need no `asmatrix`.
    **properties
        Claims, such as ``is_symmetric=True``.

    Returns
    -------
    Matrix (m, n)

    Raises
    ------
    ShapeError, DtypeError
        If it is no matrix or vector of numbers.
    ConfigError
        If a property is unknown, or claims contradict each other.

    Examples
    --------
    >>> asmatrix(np.eye(3), is_identity=True).properties.is_diagonal
    True
    """
    matrix = obj if isinstance(obj, Matrix) else Matrix(obj)
    if properties:
        matrix.properties.update(properties)
    return matrix
