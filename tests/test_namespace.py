"""The public names, frozen: adding or removing one means changing this list, the docs and the changelog.

To see what a module exports now: ``python -c "import pycauset; print(sorted(pycauset.__all__))"``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PUBLIC: dict[str, set[str]] = {
    "pycauset": {
        *("Matrix", "Properties", "__version__"),
        *("asmatrix", "eye", "from_function", "ones", "open", "random", "save", "zeros"),
        *("matmul", "norm", "plan", "trace"),
        *("configure", "cuda", "errors", "linalg", "settings"),
        *("BackendError", "ConfigError", "CorruptTileError", "DeviceError", "DtypeError", "MemoryLimitError", "NotInMemoryError"),
        *("OutOfBoundsError", "OverlapError", "PycausetError", "PycausetWarning", "ShapeError", "StoreError"),
        *("StoreExistsError", "StoreFullError", "StoreNotFoundError", "StorePermissionError"),
        *("IllConditionedError", "JournalBusyError", "JournalError", "NonFiniteError", "NotHermitianError", "NotConvergedError"),
        *("NotPositiveDefiniteError", "SingularMatrixError"),
    },
    "pycauset.cuda": {
        *("CudaInfo", "MemoryInfo"),
        *("benchmark", "current_device", "disable", "enable", "force_backend", "info", "is_available"),
        *("memory_info", "pinned_empty", "set_pinning_budget"),
    },
    "pycauset.linalg": {
        *("cho_solve", "cholesky", "det", "inv", "logdet", "lstsq", "matmul", "norm", "slogdet", "solve", "solve_triangular"),
        *("LstsqResult", "SlogdetResult", "trace"),
        *("EigenStatistics", "cond", "eigs", "eigsh", "randomized_svd", "svds"),
    },
    "pycauset.config": {"SETTINGS", "Setting", "configure", "get", "settings"},
}


def _documentation() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_frozen(module: str) -> None:
    exported = set(importlib.import_module(module).__all__)
    assert exported == PUBLIC[module], f"new: {sorted(exported - PUBLIC[module])}, gone: {sorted(PUBLIC[module] - exported)}"


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
    assert set(loaded.__all__) <= set(dir(loaded)), "a lazily loaded name is missing from dir()"


@pytest.mark.parametrize("name", sorted(f"{module}.{name}" for module, names in PUBLIC.items() for name in names))
def test_exported_names_are_documented(name: str) -> None:
    """By its full name somewhere under docs/."""
    assert re.search(rf"\b{re.escape(name)}\b", _documentation()), f"{name} is not mentioned under docs/"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_functions_and_classes_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    bare = [n for n in loaded.__all__ if callable(getattr(loaded, n)) and not (getattr(loaded, n).__doc__ or "").strip()]
    assert bare == []
