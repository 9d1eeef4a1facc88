"""Checkpoints of iterations: between two passes the basis and all that goes on from it are written to one file.

Eigenvalue functions have no output beside which a journal could lie. Their checkpoints lie in the folder ``checkpoints`` of the
setting ``scratch``, or of ``home``, under a digest of the request: operand, arguments, plan and versions. The same call finds it
there, and nothing else does. A file is its columns one after another, the coefficients, a record in JSON behind its checksum, and
the record's length; it takes its name when it is durable.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from pycauset import config
from pycauset.drivers.arnoldi import Progress, Restart
from pycauset.drivers.basis import Basis
from pycauset.errors import PycausetWarning
from pycauset.storage.direct import crc32c
from pycauset.storage.identity import plain
from pycauset.storage.journalfile import format_record, parse_line
from pycauset.storage.output import fsync_folder

__all__ = ["Checkpoint"]

Array = np.ndarray[Any, Any]

_LEAST_SECONDS: Final = 5.0  # work that is lost sooner is not worth a file
_SHARE: Final = 20  # of the time of work, a checkpoint may take one part in so many
_RATE: Final = 2e8  # bytes a second, before the first one has been written
_DAYS: Final = 30
_SUFFIX: Final = ".krylov"
_STATE: Final = ("size", "width", "kept", "passes", "restarts", "locked", "starts", "round", "latest", "granted")


class Checkpoint:
    """The checkpoint of one request.

    Parameters
    ----------
    request : mapping
        All that decides the bits of the result, as JSON values.
    resume : True or "restart"
        Whether one that is there is taken up, or removed.
    """

    def __init__(self, request: dict[str, Any], resume: Any) -> None:
        self._request = plain(request)
        digest = hashlib.sha256(json.dumps(self._request, sort_keys=True).encode()).hexdigest()
        self._folder = Path(config.get("scratch") or config.get("home")) / "checkpoints"
        self.path = self._folder / f"{digest[:32]}{_SUFFIX}"
        self._since = time.monotonic()
        self._rate = _RATE
        self._broken = False
        if resume == "restart":
            self.remove()

    def load(self, basis: Basis) -> tuple[Restart, int] | None:
        """What an interrupted run left, its columns put in the basis, and the vectors it had multiplied; None if nothing."""
        try:
            with open(self.path, "rb") as file:
                found = _read(file, self._request, basis)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            basis.clear()
            warnings.warn(
                f"the checkpoint {self.path} is not used ({error}); the work starts over", PycausetWarning, stacklevel=2
            )
            self.remove()
            return None
        return found

    def save(self, begun: Restart, basis: Basis, columns: int, step: int) -> None:
        """Write a checkpoint if the work since the last one is worth it; ``step`` columns at a time."""
        nbytes = basis.n * (begun.size + begun.width) * basis.dtype.itemsize
        start = time.monotonic()
        if self._broken or start - self._since < max(_LEAST_SECONDS, _SHARE * nbytes / self._rate):
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sweep(self._folder)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                _write(file, self._request, begun, basis, columns, step)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            fsync_folder(os.fspath(self._folder))
        except OSError as error:
            self._broken = True
            warnings.warn(f"no checkpoint in {self._folder} ({error}); the work goes on without", PycausetWarning, stacklevel=2)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self._since = time.monotonic()
        self._rate = max(nbytes / max(self._since - start, 1e-3), 1.0)

    def remove(self) -> None:
        """The work is finished."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _pieces(size: int, width: int, kept: int, step: int) -> Iterator[tuple[int, int]]:
    """Columns in the pieces in which a restart and the steps after it put them: a basis on disk has its tiles so."""
    for begin, end in ((0, kept), (kept, size)):
        for first in range(begin, end, step):
            yield first, min(first + step, end)
    if width:
        yield size, size + width


def _write(file: BinaryIO, request: dict[str, Any], begun: Restart, basis: Basis, columns: int, step: int) -> None:
    crc = 0
    parts = (basis.give(basis.block(*piece)).T for piece in _pieces(begun.size, begun.width, begun.kept, step))
    for part in itertools.chain(parts, [begun.h]):
        data = np.ascontiguousarray(part)
        crc = crc32c(data, crc)
        file.write(data.reshape(-1).view(np.uint8).data)
    record = format_record(
        {
            "request": request,
            "crc": crc,
            "n": basis.n,
            "dtype": basis.dtype.name,
            "step": step,
            "columns": columns,
            "state": [getattr(begun, name) for name in _STATE],
            "norm": begun.norm.hex(),
            "rng": begun.rng,
            "history": [[*entry[:-1], float(entry[-1]).hex()] for entry in begun.history],
        }
    )
    file.write(record + len(record).to_bytes(8, "little"))


def _read(file: BinaryIO, request: dict[str, Any], basis: Basis) -> tuple[Restart, int]:
    """Raises ValueError if anything does not fit."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 8))
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= end - 8:
        raise ValueError("it has no end")
    file.seek(end - 8 - length)
    record = parse_line(file.read(length)[:-1])
    if record is None:
        raise ValueError("its record is damaged")
    if record["request"] != request or record["n"] != basis.n or record["dtype"] != basis.dtype.name:
        raise ValueError("it is of other work")
    state = {name: int(v) for name, v in zip(_STATE, record["state"], strict=True)}
    size, width = state["size"], state["width"]
    item = basis.dtype.itemsize
    if end - 8 - length != ((size + width) * (basis.n + size)) * item:
        raise ValueError("its length is wrong")
    file.seek(0)
    crc = 0

    def take(rows: int, cols: int) -> Array:
        nonlocal crc
        data = np.empty((rows, cols), basis.dtype)
        if file.readinto(data.reshape(-1).view(np.uint8).data) != data.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it ended early")
        crc = crc32c(data, crc)
        return data

    for first, stop in _pieces(size, width, state["kept"], int(record["step"])):
        basis.put(first, basis.take(take(stop - first, basis.n).T))
    h = take(size + width, size)
    if crc != record["crc"]:
        raise ValueError("its checksum does not fit")
    history = [Progress._make([*entry[:-1], float.fromhex(entry[-1])]) for entry in record["history"]]
    norm = float.fromhex(record["norm"])
    begun = Restart(h=h, norm=norm, rng=record["rng"], history=history, **state)
    return begun, int(record["columns"])


def _sweep(folder: Path) -> None:
    """Remove what nobody has come back to, and what killed processes were writing."""
    now = time.time()
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            days = {_SUFFIX: _DAYS, ".tmp": 1}.get(Path(entry.name).suffix)
            with contextlib.suppress(OSError):
                if days is not None and now - entry.stat(follow_symlinks=False).st_mtime > days * 86400:
                    os.unlink(entry.path)
