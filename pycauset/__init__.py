"""Dense linear algebra for matrices larger than GPU memory and larger than RAM, on whatever machine there is.

>>> import numpy as np, pycauset
>>> A = pycauset.random((300, 200), seed=1)
>>> C = A @ A.T
>>> C.shape, C.properties.is_symmetric
((300, 300), True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycauset import cuda, errors, linalg
    from pycauset.config import configure, settings
    from pycauset.creation import eye, from_function, ones, random, zeros
    from pycauset.errors import (
        BackendError,
        ConfigError,
        CorruptTileError,
        DeviceError,
        DtypeError,
        IllConditionedError,
        JournalBusyError,
        JournalError,
        MemoryLimitError,
        NonFiniteError,
        NotConvergedError,
        NotHermitianError,
        NotInMemoryError,
        NotPositiveDefiniteError,
        OutOfBoundsError,
        OverlapError,
        PycausetError,
        PycausetWarning,
        ShapeError,
        SingularMatrixError,
        StoreError,
        StoreExistsError,
        StoreFullError,
        StoreNotFoundError,
        StorePermissionError,
    )
    from pycauset.files import open, save
    from pycauset.linalg import matmul, norm, trace
    from pycauset.matrix import Matrix, asmatrix
    from pycauset.planning import plan
    from pycauset.properties import Properties

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "ConfigError",
    "CorruptTileError",
    "DeviceError",
    "DtypeError",
    "IllConditionedError",
    "JournalBusyError",
    "JournalError",
    "Matrix",
    "MemoryLimitError",
    "NonFiniteError",
    "NotConvergedError",
    "NotHermitianError",
    "NotInMemoryError",
    "NotPositiveDefiniteError",
    "OutOfBoundsError",
    "OverlapError",
    "Properties",
    "PycausetError",
    "PycausetWarning",
    "ShapeError",
    "SingularMatrixError",
    "StoreError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "StorePermissionError",
    "__version__",
    "asmatrix",
    "configure",
    "cuda",
    "errors",
    "eye",
    "from_function",
    "linalg",
    "matmul",
    "norm",
    "ones",
    "open",
    "plan",
    "random",
    "save",
    "settings",
    "trace",
    "zeros",
]

# Where each name lives: nothing is imported before it is used.
_HOME = {
    **dict.fromkeys(("configure", "settings"), "config"),
    **dict.fromkeys(("eye", "from_function", "ones", "random", "zeros"), "creation"),
    **dict.fromkeys(("open", "save"), "files"),
    **dict.fromkeys(("matmul", "norm", "trace"), "linalg.products"),
    "plan": "planning",
    **dict.fromkeys(("Matrix", "asmatrix"), "matrix"),
    "Properties": "properties",
    **{name: "errors" for name in __all__ if name.endswith(("Error", "Warning"))},
}
_MODULES = ("cuda", "errors", "linalg")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pycauset.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'pycauset' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pycauset.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
