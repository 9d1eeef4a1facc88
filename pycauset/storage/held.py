"""Telling a folder from another one that has taken its name since."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

__all__ = ["HeldFolder"]

_SHARE: Final = 4  # at most a quarter of the files that this process may open


class HeldFolder:
    """A folder that keeps its inode number as long as this object lives, so that the number identifies it.

    A file system gives the inode of a removed folder to the next one that is made, often at once; an open descriptor
    keeps it from doing so. A folder that is only held takes no space: its files go when they are removed. Beyond a quarter of
    the process's limit of open files folders are not held any more, only compared.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a")
    >>> os.mkdir(path)
    >>> held = HeldFolder(path)
    >>> os.rmdir(path)
    >>> os.mkdir(path)
    >>> held.is_at(path)
    False
    """

    __slots__ = ("_fd", "_inode")

    _count = 0

    def __init__(self, path: str) -> None:
        self._fd = -1
        if HeldFolder._count < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE:
            with contextlib.suppress(OSError):  # without it the number still tells most of the time
                self._fd = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
                HeldFolder._count += 1
        status = os.stat(path) if self._fd < 0 else os.fstat(self._fd)
        self._inode = (status.st_dev, status.st_ino)

    @property
    def inode(self) -> tuple[int, int]:
        """Device and number."""
        return self._inode

    def is_at(self, path: str) -> bool | None:
        """Whether it is still what ``path`` names; ``None`` if there is nothing."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return (status.st_dev, status.st_ino) == self._inode

    def __del__(self) -> None:
        if self._fd >= 0:
            HeldFolder._count -= 1
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
