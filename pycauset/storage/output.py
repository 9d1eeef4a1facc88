"""Outputs under construction: a hidden sibling with space set aside, that takes its final name only when finished.

``.NAME.partial-PID-XXXX`` lies beside the target, so that the last step is a rename. A lock on a file inside (or on the file
itself) tells a living output from one whose process died; the next output of the same name clears the latter away.

An output with a journal (:mod:`pycauset.storage.journal`) lies in ``.NAME.resumable`` instead, and outlives its process as
long as the journal is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import Final

from pycauset.errors import ConfigError, JournalError, StoreError, StoreExistsError, StoreFullError, StoreNotFoundError
from pycauset.storage.base import store_error
from pycauset.storage.direct import preallocate
from pycauset.units import format_bytes

__all__ = [
    "UNFINISHED",
    "OutputFolder",
    "Reserve",
    "check_space",
    "check_target",
    "free_bytes",
    "fsync_folder",
    "journal_path",
    "remove_stages",
    "resumable_folder",
    "resumable_tiles",
    "set_aside",
    "stages_done",
    "stages_folder",
    "stages_request",
    "sweep",
    "write_durably",
]

UNFINISHED: Final = ".zarr.json.unfinished"
"""Where the metadata of a store stay while it is being overwritten, and those of an output that has a journal."""
RESERVE_NAME: Final = ".reserve"
_STEP: Final = 64 << 20  # the reserve shrinks in such steps: each one is a transaction of the file system
_NEWBORN_SECONDS: Final = 60.0  # a folder this young may just not have its lock yet
#: A file of another kind would be expected under a name that ends so.
_FOREIGN: Final = frozenset(
    {".npz", ".h5", ".hdf5", ".hdf", ".he5", ".nc", ".zip", ".csv", ".tsv", ".txt", ".dat", ".bin", ".mat", ".mtx", ".parquet"}
    | {".feather", ".arrow", ".json", ".pkl", ".pickle", ".pt", ".tif", ".tiff", ".xlsx"}
)


def check_space(folder: str, needed: int, what: str) -> None:
    """Raise :class:`StoreFullError` unless ``folder``'s file system has ``needed`` bytes for this user."""
    free = free_bytes(folder)
    if needed > free:
        raise full_error(folder, needed, free, what)


def free_bytes(folder: str) -> int:
    """Bytes that this user may still write on a folder's file system (2⁶³ where it does not tell)."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize if status.f_blocks else 2**63


def full_error(folder: str, needed: int, free: int, what: str) -> StoreFullError:
    return StoreFullError(
        f"{what} needs {format_bytes(needed)} ({needed} bytes), but {folder} has {format_bytes(free)} ({free} bytes) free; "
        "free some space or choose another file system"
    )


def set_aside(fd: int, start: int, nbytes: int, path: str, what: str) -> None:
    """Have the file system keep room for bytes of a file that is there, which may have holes; nothing that is in it changes.

    Where the file system cannot do so, it must at least have as much room as the file lacks.

    Raises
    ------
    StoreFullError
        If it has no room.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return
    folder = os.path.dirname(os.path.abspath(path))
    missing = max(0, min(nbytes, start + nbytes - status.st_blocks * 512))
    try:
        if not preallocate(fd, nbytes, start, grow=False):
            check_space(folder, missing, what)
    except StoreError:
        raise
    except OSError as error:
        typed = store_error(error, f"setting {nbytes} bytes aside for {path}")
        if isinstance(typed, StoreFullError):
            raise full_error(folder, missing, free_bytes(folder), what) from error
        raise typed from error


def check_target(path: Path, overwrite: bool | None, *, journalled: bool = False) -> None:
    """Refuse an output path that names another kind of file, whose folder is missing, or that is taken.

    With ``overwrite`` a matrix may be replaced (a Zarr array, a .npy file), never anything else. None is False where the
    caller has no such argument that the message could name. Unless the output is ``journalled`` itself, a journal at this
    path is in the way: always while its process is alive; when it was interrupted, unless the caller overwrites.
    """
    suffix = path.suffix.lower()
    if suffix in _FOREIGN or suffix == ".npy" != path.suffix:
        raise ConfigError(f"cannot write {path.suffix} files: {path}; name it .npy, or .zarr (or no suffix) for a Zarr folder")
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"cannot create {path}: there is no folder {path.parent}; make it first")
    if not journalled and (journal_path(path).exists() or stages_request(path).is_file()):
        _check_journal(path, overwrite)
    if not os.path.lexists(path):
        return
    if not overwrite:
        remedy = "or remove it first" if overwrite is None else "remove it, or pass overwrite=True"
        raise StoreExistsError(f"{path} exists; choose another name, {remedy}")
    marks = ("zarr.json", UNFINISHED, ".zarray")
    if path.is_dir():
        fine = any((path / mark).is_file() for mark in marks) or not any(path.iterdir())
        if (path / "zarr.json").is_file():
            fine = b'"array"' in (path / "zarr.json").read_bytes()[:1_000_000]
    else:
        fine = path.is_file() and path.suffix == ".npy"
    if not fine or path.is_symlink():
        raise StoreExistsError(f"{path} exists and is no matrix of a kind that pycauset writes; it is not overwritten")


def _check_journal(path: Path, overwrite: bool | None) -> None:
    from pycauset.storage.journalfile import hint, locked  # few ever need it

    with locked(journal_path(path)):
        if not overwrite and resumable_tiles(path):
            way = "delete the journal" if overwrite is None else "delete the journal or pass overwrite=True"
            raise JournalError(f"{path} is being made and not finished: {hint(path)}, or {way} to give that work up")
        if not overwrite and stages_request(path).is_file():
            way = "delete that folder" if overwrite is None else "delete that folder or pass overwrite=True"
            raise JournalError(
                f"{path} is being made and not finished: {stages_folder(path)} holds the steps done so far; run the same call "
                f"again to go on, or {way} to give that work up"
            )


def hidden_sibling(target: Path) -> Path:
    """A fresh hidden name beside ``target``."""
    return target.with_name(f".{target.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")


def resumable_folder(target: Path) -> Path:
    """Where the output of ``target`` lies while its journal is there."""
    return target.with_name(f".{target.name}.resumable")


def resumable_tiles(target: Path) -> bool:
    """Whether there are tiles of an unfinished output of ``target``, for its journal to tell what they are."""
    files = (name for _, _, names in os.walk(resumable_folder(target)) for name in names)
    return any(name != RESERVE_NAME and "zarr.json" not in name for name in files)


def journal_path(target: Path) -> Path:
    """The journal of work on ``target``."""
    return target.with_name(f"{target.name}.journal")


def stages_folder(target: Path) -> Path:
    """Where operations of several steps keep what they need on the way to ``target``."""
    return target.with_name(f"{target.name}.stages")


def stages_request(target: Path) -> Path:
    """The file in :func:`stages_folder` that says what was asked, while work goes on."""
    return stages_folder(target) / "request.json"


def stages_done(target: Path) -> Path:
    """What that file is called once nothing in the folder is needed any more."""
    return stages_folder(target) / "done.json"


def remove_stages(target: Path) -> None:
    """Remove the folder of stages; the file that tells whose it is goes last. Anybody else's folder of that name stays."""
    folder, marks = stages_folder(target), (stages_request(target), stages_done(target))
    with contextlib.suppress(OSError):
        if any(mark.exists() for mark in marks):
            for entry in folder.iterdir():
                if entry not in marks:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for mark in marks:
                mark.unlink(missing_ok=True)
        folder.rmdir()  # an empty one is what a kill left of it; one with somebody else's files stays


def lock(fd: int) -> bool:
    """Take the lock that marks a living output; False if another process holds it, or locks do not work here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(target: Path) -> None:
    """Remove what dead processes left of outputs called like ``target``. Best effort, never an error."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            if entry.name.startswith(f".{target.name}.partial-"):
                remove_if_dead(
                    entry.path, os.path.join(entry.path, RESERVE_NAME) if entry.is_dir(follow_symlinks=False) else entry.path
                )
        resumable = resumable_folder(target)
        if resumable.is_dir() and not journal_path(target).exists():
            remove_if_dead(os.fspath(resumable), os.fspath(resumable / RESERVE_NAME))


def remove_if_dead(path: str, lock_path: str) -> None:
    """Remove a file or folder of this user's whose lock nobody holds."""
    status = os.lstat(path)
    if status.st_uid != os.geteuid() or os.path.islink(path):
        return
    try:
        fd = os.open(lock_path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        if time.time() - status.st_mtime > _NEWBORN_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
        return
    try:
        if lock(fd):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
    finally:
        os.close(fd)


def fsync_folder(folder: str) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync names at once
            raise
    finally:
        os.close(fd)


def write_durably(path: str, text: str) -> None:
    """Write a small file by way of a temporary one, synced before it takes its name."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class Reserve:
    """Space set aside for tiles that are still to come; it shrinks as they land.

    Parameters
    ----------
    folder : str
    nbytes : int
        All that the output will take. Where the file system cannot set space aside only the free space is checked.

    Raises
    ------
    StoreFullError
        With the bytes needed and free, before any work.
    """

    def __init__(self, folder: str, nbytes: int, what: str) -> None:
        around = os.path.dirname(folder)  # in messages: the hidden folder itself is nothing to the user
        check_space(around, nbytes, what)
        self._path = os.path.join(folder, RESERVE_NAME)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock(self._fd)
        self._lock = threading.Lock()
        self._owed = 0
        try:
            self._left = nbytes if preallocate(self._fd, nbytes) else 0
        except OSError as error:
            os.ftruncate(self._fd, 0)
            free = free_bytes(folder)
            self._left = 0
            self.close()
            typed = store_error(error, f"setting {nbytes} bytes aside in {around}")
            if isinstance(typed, StoreFullError):
                raise full_error(around, nbytes, free, what) from error
            raise typed from error

    @property
    def nbytes(self) -> int:
        """What is set aside now."""
        return self._left

    def landed(self, nbytes: int) -> None:
        """A tile of ``nbytes`` has taken its place."""
        with self._lock:
            self._owed += nbytes
            if self._owed >= _STEP:
                self._shrink()

    def give_way(self, nbytes: int) -> bool:
        """The disk is full: free what tiles have taken already and ``nbytes`` for the one at hand; False if nothing is left."""
        with self._lock:
            before = self._left
            self._owed += nbytes
            self._shrink()
            self._owed -= nbytes  # the tile counts once more when it lands
            return self._left < before

    def release(self) -> None:
        """All tiles are there: give the rest back, so that the metadata find room; the lock stays."""
        with self._lock:
            self._owed = self._left
            self._shrink()

    def _shrink(self) -> None:
        left = max(0, self._left - max(0, self._owed))
        if left < self._left and self._fd >= 0:
            os.ftruncate(self._fd, left)
        self._owed -= self._left - left
        self._left = left

    def close(self) -> None:
        """Give all of it back."""
        with self._lock:
            if self._fd >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
                os.close(self._fd)
                self._fd, self._left = -1, 0


class OutputFolder:
    """The hidden folder of a store that is being made; gone if it is neither committed nor referenced any more.

    Parameters
    ----------
    target : Path
    nbytes : int
        Space to set aside.
    what : str
        For messages: the output and its size.
    overwrite : bool or None
        As :func:`check_target` takes it.
    resumable : bool
        The folder has the name that :func:`resumable_folder` gives and stays until it is discarded. Whoever asks for one holds
        the lock of the journal, so a folder of that name is nobody's.
    reopen : bool
        Take up the resumable folder that is there.
    """

    def __init__(
        self, target: Path, nbytes: int, what: str, *, overwrite: bool | None, resumable: bool = False, reopen: bool = False
    ) -> None:
        check_target(target, overwrite, journalled=resumable or reopen)
        sweep(target)
        self.target, self.overwrite, self.resumable, self._what = target, overwrite, resumable or reopen, what
        self._pid = os.getpid()
        self.path = resumable_folder(target) if self.resumable else hidden_sibling(target)
        try:
            if resumable and not reopen:
                shutil.rmtree(self.path, ignore_errors=True)
            if reopen:
                self.path.joinpath(RESERVE_NAME).unlink(missing_ok=True)
            else:
                self.path.mkdir()
            if not self.resumable:
                self._finalizer = weakref.finalize(self, remove_tree, str(self.path), self._pid)
            self.reserve = Reserve(str(self.path), nbytes, what)
        except BaseException as error:
            if not reopen:
                shutil.rmtree(self.path, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise store_error(error, f"creating {target}") from error
            raise

    def set_aside(self, nbytes: int) -> None:
        """Have a new reserve, for what is still to come."""
        self.reserve.close()
        self.reserve = Reserve(str(self.path), nbytes, self._what)

    def publish(self) -> None:
        """Give the folder its final name; what it replaces goes afterwards: an array, and interrupted work that had a journal."""
        self.reserve.close()
        fsync_folder(str(self.path))
        if self.resumable or not self.overwrite:
            self._rename()
            return
        from pycauset.storage.journalfile import locked

        journal = journal_path(self.target)
        with locked(journal):
            self._rename()
            journal.unlink(missing_ok=True)
            shutil.rmtree(resumable_folder(self.target), ignore_errors=True)
            remove_stages(self.target)

    def _rename(self) -> None:
        old: Path | None = None
        if self.overwrite and os.path.lexists(self.target):
            old = hidden_sibling(self.target)
            os.rename(self.target, old)
        try:
            os.rename(self.path, self.target)
        except BaseException as error:
            if old is not None and not os.path.lexists(self.target):
                os.rename(old, self.target)
            elif isinstance(error, OSError) and os.path.lexists(self.target):
                raise StoreExistsError(
                    f"{self.target} appeared while it was being made; remove it or choose another name"
                ) from error
            raise
        if not self.resumable:
            self._finalizer.detach()
        fsync_folder(str(self.target.parent))
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder and give the space back."""
        self.reserve.close()
        if self.resumable:
            remove_tree(str(self.path), self._pid)
        else:
            self._finalizer()


def remove_tree(path: str, pid: int) -> None:
    """Remove a folder, unless this is a forked child of the process that made it."""
    if os.getpid() != pid:
        return
    for _ in range(3):  # a tile that another thread was just finishing can get in between
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
