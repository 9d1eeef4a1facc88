"""Every error that pycauset raises on purpose.

Each class is also the built-in that NumPy or Python would raise for the same mistake, so ``except ValueError`` keeps
working. A message names the offending thing, its value, the limit it broke, and the remedy.
"""

from __future__ import annotations

import sys
from typing import Any

from numpy.linalg import LinAlgError

__all__ = [
    "BackendError",
    "ConfigError",
    "CorruptTileError",
    "DeviceError",
    "DtypeError",
    "IllConditionedError",
    "JournalBusyError",
    "JournalError",
    "MemoryLimitError",
    "NonFiniteError",
    "NotConvergedError",
    "NotHermitianError",
    "NotInMemoryError",
    "NotPositiveDefiniteError",
    "OutOfBoundsError",
    "OverlapError",
    "PycausetError",
    "PycausetWarning",
    "ShapeError",
    "SingularMatrixError",
    "StoreError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "StorePermissionError",
]


class PycausetError(Exception):
    """Base class of every error that pycauset raises on purpose."""


class ShapeError(PycausetError, ValueError):
    """Shapes that do not fit together, or an index outside a matrix."""


class OutOfBoundsError(ShapeError, IndexError):
    """An index outside a matrix, or one of a kind that matrices do not take."""


class DtypeError(PycausetError, TypeError):
    """An element type that the operation does not support."""


class OverlapError(PycausetError, ValueError):
    """The output shares storage with an input, which streaming would overwrite before it is read."""


class ConfigError(PycausetError, ValueError):
    """A setting, size or argument that cannot be understood."""


class StoreError(PycausetError, OSError):
    """A file, folder or array on disk that cannot be read or written."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No matrix at this path, or a part of it has vanished."""


class StoreExistsError(StoreError, FileExistsError):
    """The output path is taken."""


class StorePermissionError(StoreError, PermissionError):
    """The folder or file cannot be written (or read) by this user."""


class StoreFullError(StoreError):
    """The file system has no room for the output; raised before work starts wherever that can be known."""


class CorruptTileError(StoreError):
    """A tile has the wrong length, a wrong checksum, or cannot be decoded."""


class MemoryLimitError(PycausetError, MemoryError):
    """The work needs more memory than its limit grants; the message carries both numbers."""


class NotInMemoryError(PycausetError, BufferError):
    """Data asked for without a copy that do not lie in RAM as they are."""


class DeviceError(PycausetError, RuntimeError):
    """A GPU call failed. After a sticky CUDA error the device is not touched again in this process."""


class BackendError(DeviceError):
    """The forced backend is not there, or cannot run this operation."""


class NonFiniteError(PycausetError, ValueError):
    """NaN or infinity where the method forbids it."""


class NotConvergedError(PycausetError, RuntimeError):
    """An iteration ended before it had all that was asked for.

    Where ``scipy.sparse.linalg`` is loaded, it is an instance of SciPy's ``ArpackNoConvergence``, too.

    Attributes
    ----------
    eigenvalues, eigenvectors : ndarray
        The pairs that did converge; of singular values, right singular vectors.
    statistics : EigenStatistics or None
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> NotConvergedError:
        scipy = sys.modules.get("scipy.sparse.linalg")  # who has not loaded it cannot be waiting for its error
        if scipy is not None and cls is NotConvergedError:
            cls = type(cls.__name__, (cls, scipy.ArpackNoConvergence), {"__module__": cls.__module__, "__doc__": cls.__doc__})
        return super().__new__(cls, *args)

    def __init__(self, message: str, *, eigenvalues: Any = (), eigenvectors: Any = None, statistics: Any = None) -> None:
        RuntimeError.__init__(self, message)
        self.eigenvalues, self.eigenvectors, self.statistics = eigenvalues, eigenvectors, statistics

    def __reduce__(self) -> tuple[Any, ...]:
        return NotConvergedError, self.args, self.__dict__


class NotHermitianError(PycausetError, LinAlgError):
    """A matrix that was checked is not symmetric (Hermitian); ``index`` is the first row and column found to differ."""

    def __init__(self, message: str, *, index: tuple[int, int]) -> None:
        super().__init__(message)
        self.index = index


class NotPositiveDefiniteError(PycausetError, LinAlgError):
    """A Cholesky factorisation met a pivot that is not positive.

    Attributes
    ----------
    order : int
        Order of the first leading minor that is not positive definite (1-based).
    pivot : int
        Row and column of the pivot in the whole matrix (0-based).
    value : float
        The pivot before its square root would have been taken; NaN if NaN, infinity or an overflow was met.
    tiles : dict or None
        After a factorisation in place: rectangles ``(r0, r1, c0, c1)`` under ``"factor"`` (final), ``"updated"`` (in part),
        ``"original"`` and ``"unspecified"`` (a kernel stopped half-way, or went on with what was wrong).
    """

    tiles: dict[str, tuple[Any, ...]] | None = None

    def __init__(self, message: str, *, pivot: int, value: float) -> None:
        super().__init__(message)
        self.pivot, self.order, self.value = pivot, pivot + 1, value


class SingularMatrixError(PycausetError, LinAlgError):
    """A triangular matrix has a zero on its diagonal, at ``index`` (0-based, in the whole matrix)."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class IllConditionedError(PycausetError, LinAlgError):
    """A problem too ill-conditioned for the method; ``condition`` is the estimated condition number."""

    def __init__(self, message: str, *, condition: float) -> None:
        super().__init__(message)
        self.condition = condition


class JournalError(StoreError):
    """A journal that cannot be used: of another operation, damaged, or of another version."""


class JournalBusyError(JournalError):
    """Another process is at work on the same output."""


class PycausetWarning(UserWarning):
    """A degradation that changes speed, never results (pinning denied, profile unreadable, ...)."""
