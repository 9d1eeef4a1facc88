"""Who an operand is, in words that a journal can keep: so that work goes on only with what it was begun with."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pycauset.errors import ConfigError
from pycauset.storage.base import TileStore
from pycauset.storage.direct import aligned_empty, crc32c, rows_contiguous
from pycauset.tiling import Rect

__all__ = ["differences", "newest_chunk", "operand_identity", "plain", "versions"]

_PROBE: Final = 48  # rows and columns of each sampled rectangle
_BAND_BYTES: Final = 4 << 20


def versions() -> dict[str, str]:
    """Versions of what the bits of a result depend on."""
    import scipy

    blas = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "pycauset": str(getattr(sys.modules.get("pycauset"), "__version__", "")),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
    }


def operand_identity(store: TileStore, *, checksum: int | None = None) -> dict[str, Any]:
    """What tells an operand from another one, or from itself after a change.

    A native store or a ``.npy`` file is known by its path and its metadata's generation, length and time; an array in RAM by a
    checksum of all its elements, unless ``checksum`` is given; an HDF5 dataset by its file's length and time; anything
    else (a function, another library's array) by a checksum of nine small rectangles of it.

    Parameters
    ----------
    store : TileStore
    checksum : int, optional

    Returns
    -------
    dict
        JSON values.

    Examples
    --------
    >>> from pycauset.storage import as_store
    >>> a = np.eye(3)
    >>> before = operand_identity(as_store(a))
    >>> a[2, 2] = 5
    >>> differences(before, operand_identity(as_store(a)))[0].split(" was ")[0]
    'checksum'
    """
    identity: dict[str, Any] = {
        "kind": type(store).__name__,
        "path": os.path.realpath(store.path) if store.path is not None else None,
        "shape": list(store.shape),
        "dtype": store.dtype.name,
        "structure": store.structure,
    }
    array = store.view(Rect(0, store.shape[0], 0, store.shape[1]))
    metadata = getattr(store, "metadata_path", None)
    if checksum is not None:
        identity["checksum"] = f"{checksum:08x}"
    elif metadata is not None:
        identity |= {"generation": getattr(store, "metadata_generation", 0), "metadata": _file(metadata)}
    elif array is not None:
        identity["checksum"] = f"{_content(array):08x}"
    elif store.path is not None and store.path.is_file():
        identity["file"] = _file(os.fspath(store.path))
    else:
        container = getattr(store, "container", None)
        if container is not None and os.path.isfile(container):
            identity["file"] = [container, *_file(container)]
        identity["sample"] = f"{_sample(store):08x}"
    return identity


def newest_chunk(folder: str | os.PathLike[str]) -> list[int]:
    """How many files a folder holds, and when the newest was changed (nanoseconds): any writer's change shows."""
    count = newest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            count += 1
            newest = max(newest, os.stat(os.path.join(parent, name)).st_mtime_ns)
    return [count, newest]


def _file(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _content(array: NDArray[Any]) -> int:
    if rows_contiguous(array):
        return crc32c(array)
    crc, step = 0, max(1, _BAND_BYTES // max(1, array.shape[1] * array.itemsize))
    for start in range(0, array.shape[0], step):
        crc = crc32c(np.ascontiguousarray(array[start : start + step]), crc)
    return crc


def _sample(store: TileStore) -> int:
    rows, cols = store.shape
    crc = 0
    for i in range(3):
        for j in range(3):
            r0, c0 = max(0, (rows - _PROBE) * i // 2), max(0, (cols - _PROBE) * j // 2)
            rect = Rect(r0, min(rows, r0 + _PROBE), c0, min(cols, c0 + _PROBE))
            if rect.size:
                out = aligned_empty(rect.shape, store.dtype)
                store.read(rect, out)
                crc = crc32c(out, crc)
    return crc


def plain(value: Any, where: str = "the request") -> Any:
    """``value`` as JSON gives it back: tuples become lists, NumPy's numbers Python's, complex numbers and paths text.

    Raises
    ------
    ConfigError
        If it holds anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, f"{where}[{k}]") for k, entry in enumerate(value)]
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (complex, Path)):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{where} is {value!r}, which a journal cannot keep; give numbers, text, lists and dicts")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two JSON values: name, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    same = old == new or (old != old and new != new)
    return [] if same else [f"{name} was {old!r} and is {new!r}"]
