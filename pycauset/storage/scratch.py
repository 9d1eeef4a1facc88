"""Results that nobody gave a name: stores in the scratch folder, gone with the last reference or with the process.

Each process has a folder of its own there, mode 0700, with a locked file in it. A folder whose lock is free belonged to a process
that died; the next process that needs scratch space removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from pathlib import Path
from typing import Final

from numpy.typing import DTypeLike

from pycauset import config
from pycauset.storage.base import store_error
from pycauset.storage.native import ZarrStore
from pycauset.storage.output import remove_if_dead, remove_tree

__all__ = ["is_scratch", "scratch_folder", "scratch_store"]

_PREFIX: Final = "pycauset-scratch-"
_LOCK: Final = "lock"

_guard = threading.Lock()
_folders: dict[tuple[Path, int], Path] = {}


def scratch_folder() -> Path:
    """The folder of this process alone, under the setting ``scratch`` or under the system's temporary folder.

    Raises
    ------
    StorePermissionError, StoreError
        If it cannot be made.
    """
    import tempfile  # not needed by those who never make one

    root = config.get("scratch") or Path(tempfile.gettempdir())
    key = (root.absolute(), os.getpid())
    with _guard:
        folder = _folders.get(key)
        if folder is None or not folder.is_dir():
            try:
                folder = _folders[key] = _new_folder(root.absolute())
            except OSError as error:
                raise store_error(error, f"making a scratch folder in {root} (setting 'scratch')") from error
        return folder


def is_scratch(path: Path) -> bool:
    """Whether a file lies in the scratch folder of some process."""
    return any(folder.name.startswith(_PREFIX) for folder in path.parents)


def _new_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = root / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o700)
    # Locked before it has the name that others look for, so nobody sees it free.
    newborn = folder / f".{_LOCK}"
    fd = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename(newborn, folder / _LOCK)
    _locks.append(fd)
    weakref.finalize(_owner, remove_tree, str(folder), os.getpid())
    return folder


class _Owner:
    """Lives as long as the process: its finalizers run at exit."""


_owner: Final = _Owner()
_locks: Final[list[int]] = []


def _sweep(root: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(root):
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    remove_if_dead(entry.path, os.path.join(entry.path, _LOCK))


def scratch_store(
    shape: tuple[int, int], dtype: DTypeLike, *, chunks: tuple[int, int] | None = None, structure: str = "full"
) -> ZarrStore:
    """A native store for a result without a name.

    Space is set aside at once. Nothing but this process is meant to read it; it is removed when the last reference to the
    store goes, at the latest when the process ends.

    Parameters
    ----------
    shape : (int, int)
    dtype : dtype
    chunks : (int, int), optional
    structure : str

    Raises
    ------
    StoreFullError
        If the scratch folder's file system has no room.

    Examples
    --------
    >>> import numpy as np
    >>> from pycauset.tiling import Rect
    >>> store = scratch_store((100, 100), "float64")
    >>> store.write(Rect(0, 100, 0, 100), np.ones((100, 100)))
    >>> store.commit()
    >>> folder = store.path
    >>> del store
    >>> folder.exists()
    False
    """
    path = scratch_folder() / f"{os.urandom(8).hex()}.zarr"
    store = ZarrStore.create(path, shape, dtype, chunks=chunks, structure=structure)
    weakref.finalize(store, _remove, os.fspath(path), os.getpid())
    return store


def _remove(path: str, pid: int) -> None:
    remove_tree(path, pid)
