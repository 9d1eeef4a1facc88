"""File systems that cannot lock."""

from __future__ import annotations

import errno
import fcntl
import warnings
from pathlib import Path

import pytest

from pycauset.errors import PycausetWarning
from pycauset.storage import journalfile
from pycauset.storage.journal import open_journal
from tests.storage.journalled import REQUEST


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_named_once(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(journalfile, "_without_locks", set[int]())
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(PycausetWarning, match=r"the file system of .*a\.zarr\.journal cannot lock files \(no locks\).*only one"):
        open_journal(path, REQUEST).discard()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_journal(path, REQUEST).discard()
