"""The file of a journal: one JSON record a line, each behind its own checksum, under a lock.

A line is eight hexadecimal digits (crc32c of the rest), a space, and JSON. The first record is the header. A line without its end
was cut by a crash and does not count; any other damage is an error, and so is a record that lacks what others rely on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from pycauset.errors import JournalBusyError, JournalError, PycausetWarning, StoreError, StoreNotFoundError
from pycauset.storage.base import store_error
from pycauset.storage.direct import crc32c
from pycauset.storage.output import UNFINISHED, fsync_folder, journal_path

__all__ = ["FORMAT", "RESTART", "JournalFile", "format_record", "hint", "locked", "read_journal", "remedy", "unusable"]

FORMAT: Final = 2
"""Version of the format, the header's ``"pycauset_journal"``. Another one is refused: 1 knew no ``mixture``."""

RESTART: Final = 'start over with resume="restart"'
"""The remedy where nothing has been overwritten."""

Record = dict[str, Any]

_HEADER: Final = {"request": dict, "in_place": bool, "output": dict, "plan": dict, "started_ns": int}
_CHECKSUM: Final = re.compile("[0-9a-f]{8}")

_without_locks: set[int] = set()


def remedy(path: Path, *, mixture: bool | None = None) -> str:
    """What to do where a journal cannot be followed.

    A ``mixture`` of old and new tiles is nothing to start over from. By default the matrix tells whether it is one.
    """
    target = path.with_name(path.name.removesuffix(".journal"))
    if (target / UNFINISHED).is_file() if mixture is None else mixture:
        return (
            f"{target} has been overwritten in part, nothing can start over from it: make the matrix again and delete the "
            "journal (pycauset.save with overwrite=True does both)"
        )
    return RESTART


def unusable(path: Path, what: str, *, mixture: bool | None = None) -> JournalError:
    """The error of a journal that says ``what`` nobody can follow."""
    return JournalError(f"the journal {path} cannot be followed: {what}; {remedy(path, mixture=mixture)}")


def hint(target: Path) -> str:
    """What the journal beside a matrix says of it, empty without one."""
    path = journal_path(target)
    try:
        header, _ = read_journal(path)
    except StoreNotFoundError:
        return ""
    except StoreError as error:
        return str(error)
    operation = header.get("request", {}).get("operation", "the work")
    return f"a journal of {operation} is beside it ({path.name}); run the same call again to go on"


def format_record(record: Record) -> bytes:
    r"""A record as a line.

    Examples
    --------
    >>> format_record({"a": 1})
    b'cff7d56a {"a":1}\n'
    """
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32c(np.frombuffer(text, np.uint8)), text)


def parse_line(line: bytes) -> Record | None:
    """The record of a line (without its end), ``None`` if it is damaged."""
    try:
        if len(line) < 10 or line[8:9] != b" " or int(line[:8], 16) != crc32c(np.frombuffer(line[9:], np.uint8)):
            return None
        record = json.loads(line[9:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def parse(data: bytes, path: Path, *, mixture: bool | None = None) -> tuple[Record, list[Record], int]:
    """Header, records and the length of what is whole; an empty header if not even that was written to its end.

    ``mixture`` as `remedy` takes it.

    Raises
    ------
    JournalError
        If a line is damaged or lacks something, or the format is another one's.
    """
    *lines, rest = data.split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        if record is None:
            raise JournalError(
                f"line {number} of the journal {path} is damaged: its checksum does not fit its text, so what it says cannot be "
                f"trusted; restore the file, or {remedy(path, mixture=mixture)}"
            )
        if number > 1 and (wrong := _wrong(record)):
            raise unusable(path, f"line {number} has {wrong}", mixture=mixture)
        records.append(record)
    if not records:
        return {}, [], 0
    header = records.pop(0)
    found = header.get("pycauset_journal")
    if found != FORMAT:
        raise JournalError(
            f"the journal {path} has format {found!r}, this version of pycauset writes format {FORMAT}; finish the work with the "
            f"version that began it, or {remedy(path, mixture=mixture)}"
        )
    for name, kind in _HEADER.items():
        if type(header.get(name)) is not kind:
            raise unusable(path, f"its header has {name} = {_short(header.get(name))}", mixture=mixture)
    if type(header["request"].get("operands", {})) is not dict:
        raise unusable(path, f"its header has request.operands = {_short(header['request']['operands'])}", mixture=mixture)
    return header, records, len(data) - len(rest)


def _wrong(record: Record) -> str:
    """The first field of a tile's, process's or end's record that has a value of another kind; empty if there is none."""
    tile, generation, chunks = record.get("tile"), record.get("generation"), record.get("chunks")
    if "tile" in record:
        numbers = type(tile) is list and len(tile) == 4 and all(type(edge) is int for edge in tile)
        if not numbers or not (0 <= tile[0] < tile[1] and 0 <= tile[2] < tile[3]):  # type: ignore[index]
            return f"tile = {_short(tile)}"
        if type(generation) is not int or generation < 1:
            return f"generation = {_short(generation)}"
        if type(chunks) is not dict or not all(type(crc) is str and _CHECKSUM.fullmatch(crc) for crc in chunks.values()):
            return f"chunks = {_short(chunks)}"
    for name, kind in (("session", dict), ("complete", bool), ("finished", str)):
        if name in record and type(record[name]) is not kind:
            return f"{name} = {_short(record[name])}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:100] + "…"


def read_journal(path: str | os.PathLike[str]) -> tuple[Record, list[Record]]:
    """Header and records of a journal, for those who want to look; no lock is taken and nothing is changed.

    Parameters
    ----------
    path : path-like
        The journal itself (``NAME.journal``).

    Returns
    -------
    header : dict
    records : list of dict
        ``{"tile", "generation", "chunks"}`` for a tile, ``{"session"}`` for a process that took up the work,
        ``{"complete"}`` when nothing is missing but the end, ``{"finished"}``.

    Raises
    ------
    StoreNotFoundError, JournalError
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise StoreNotFoundError(f"there is no journal {os.fspath(path)}") from None
    except OSError as error:
        raise store_error(error, f"reading the journal {os.fspath(path)}") from error
    header, records, _ = parse(data, Path(path))
    return header, records


# Every append ends in this name; tests replace it.


def _append(fd: int, data: bytes) -> None:
    """Add lines to the file and wait until they are on disk."""
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
    os.fsync(fd)


class JournalFile:
    """A journal under this process's lock, made if it is not there.

    Attributes
    ----------
    header : dict
        Empty until there is one.
    records : list of dict
        Those that were there when the file was opened.
    made : bool
        There was no such file.
    empty : bool
        There was nothing in it.

    Raises
    ------
    JournalBusyError
        If another process (or another journal of this one) holds the lock.
    JournalError
        If the file is damaged.
    """

    def __init__(self, path: Path, *, discard: bool = False, mixture: bool | None = None) -> None:
        self.path = path
        self.header: Record = {}
        self.records: list[Record] = []
        self.fd, self.made = _open_locked(path)
        try:
            data = b"" if discard else _read_all(self.fd)
            self.empty = not data
            self.header, self.records, self._length = parse(data, path, mixture=mixture)
            os.ftruncate(self.fd, self._length)
        except BaseException:
            self.close()
            raise

    @property
    def age_ns(self) -> int:
        """When the file was last changed, by the file system's own clock."""
        return os.fstat(self.fd).st_mtime_ns

    def begin(self, header: Record) -> None:
        """Write the header, with the file system's time in it."""
        os.utime(self.fd)
        self.header = {"pycauset_journal": FORMAT, **header, "started_ns": self.age_ns}
        self.append([self.header])
        fsync_folder(os.fspath(self.path.parent))

    def session(self) -> None:
        """Note that this process is at work."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.append([{"session": {"pid": os.getpid(), "host": socket.gethostname(), "time": now}}])

    def append(self, records: Iterable[Record]) -> None:
        """Add records durably, all in one go.

        Raises
        ------
        StoreError
            If the disk refuses; then none of them is in the file.
        """
        data = b"".join(map(format_record, records))
        try:
            _append(self.fd, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self._length)
            raise store_error(error, f"writing the journal {self.path}") from error
        self._length += len(data)

    def clear(self) -> None:
        """Forget all there is, as if the journal had never begun."""
        os.ftruncate(self.fd, 0)
        os.fsync(self.fd)
        self.header, self.records, self._length = {}, [], 0

    def remove(self) -> None:
        """Delete the journal: the work is finished or given up."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
                fsync_folder(os.fspath(self.path.parent))
            self.close()

    def close(self) -> None:
        """Give up the lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep everybody else from a journal, if it is there.

    Raises
    ------
    JournalBusyError
        If somebody is at work with it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise store_error(error, f"opening the journal {path}") from error
    try:
        _lock(fd, path)
        yield
    finally:
        os.close(fd)


def _open_locked(path: Path) -> tuple[int, bool]:
    """A locked journal, and whether it is a new one."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    while True:
        made = False
        try:
            try:
                fd = os.open(path, flags)
            except FileNotFoundError:
                fd, made = os.open(path, flags | os.O_CREAT, 0o666), True
        except OSError as error:
            raise store_error(error, f"opening the journal {path}") from error
        try:
            _lock(fd, path)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd, made
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever had the lock before has just removed the file


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise JournalBusyError(
                f"{_owner(_read_all(fd), path)} is at work with the journal {path}; wait until it has finished, or stop it and "
                "call again"
            ) from None
        _warn_without_locks(fd, path, error)


def _warn_without_locks(fd: int, path: Path, error: OSError) -> None:
    """Say once for each file system that two processes at one journal would not notice each other."""
    device = os.fstat(fd).st_dev
    if device in _without_locks:
        return
    _without_locks.add(device)
    warnings.warn(
        f"the file system of {path} cannot lock files ({error.strerror or error}): nothing keeps a second process from going on "
        "with the same journal, which would spoil the result; see to it that only one does, or use a file system with locks",
        PycausetWarning,
        stacklevel=2,
    )


def _owner(data: bytes, path: Path) -> str:
    with contextlib.suppress(JournalError):
        for record in reversed(parse(data, path)[1]):
            if "session" in record:
                return f"process {record['session'].get('pid')} on {record['session'].get('host')}"
    return "another process"


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size and (piece := os.pread(fd, size - len(data), len(data))):
        data += piece
    return data
