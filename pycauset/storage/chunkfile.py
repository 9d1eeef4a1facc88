"""One chunk of a native store as a file: elements row by row, little-endian, or packed bits; then perhaps a checksum.

Every chunk file has the full chunk's length, at the matrix's edge too (Zarr's rule), which also keeps direct I/O aligned.
Reading and writing each have two paths with equal results: straight between the file and the caller's memory, or in
steps of 4 MiB through the thread's aligned buffer (casts, transposes, packed bits, odd widths and addresses).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycauset.errors import CorruptTileError
from pycauset.storage.base import cast_unsafe, place
from pycauset.storage.direct import (
    ALIGNMENT,
    BOUNCE_BYTES,
    DirectFile,
    address,
    bounce_buffer,
    crc32c,
    crc32c_zeros,
    rows_contiguous,
    tail_buffer,
)
from pycauset.tiling import Rect, round_up

__all__ = ["ChunkFormat", "Staged", "chunk_checksum", "read_chunk", "stage_chunk", "write_chunk"]

_BITS_STEP: Final = 1 << 18  # elements unpacked at once: small enough for the allocator to reuse the same memory
_CRC_BYTES: Final = 4
_temporary: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class ChunkFormat:
    """How a chunk of ``shape`` elements lies in its file."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    packed: bool = False
    checksum: bool = False

    @property
    def stored(self) -> np.dtype[Any]:
        """Element type in the file."""
        return self.dtype.newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def payload_bytes(self) -> int:
        """Bytes before the checksum; packed bits start with one byte, the number of unused bits at the end."""
        count = self.shape[0] * self.shape[1]
        return 1 + (count + 7) // 8 if self.packed else count * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        return self.payload_bytes + (_CRC_BYTES if self.checksum else 0)

    @property
    def bounce_bytes(self) -> int:
        """Size of the thread's buffer that the indirect path needs: 4 MiB, or one row and a bit, or the whole file."""
        step = self.shape[1] if self.packed else self.row_bytes  # packed: eight rows of bits are one row of bytes
        return min(max(BOUNCE_BYTES, round_up(step, ALIGNMENT)), round_up(self.file_bytes, ALIGNMENT)) + 3 * ALIGNMENT

    @property
    def temporary_bytes(self) -> int:
        """All that the indirect path allocates."""
        return self.bounce_bytes + (3 * max(_BITS_STEP, 8 * self.shape[1]) if self.packed else 0)

    def can_be_direct(self) -> bool:
        """Whether whole chunks move without a buffer, given an aligned array of the stored type."""
        return not self.packed and self.stored.isnative and self.payload_bytes % ALIGNMENT == 0

    def offset(self, row: int) -> int:
        """Byte where a row starts (packed: the byte that holds its first bit)."""
        return 1 + row * self.shape[1] // 8 if self.packed else row * self.row_bytes

    def end(self, row: int) -> int:
        """First byte after the row before ``row``."""
        return 1 + (row * self.shape[1] + 7) // 8 if self.packed else row * self.row_bytes


# --- reading -------------------------------------------------------------------------------------------------------


def read_chunk(path: str, form: ChunkFormat, part: Rect, dest: NDArray[Any], how: str = "full", *, direct: bool = True) -> bool:
    """Read ``part`` of a chunk file (or its transpose, for a mirrored structure ``how``) into ``dest``.

    Returns
    -------
    bool
        False when the file system refuses direct I/O.

    Raises
    ------
    CorruptTileError
        If the file's length or checksum is wrong.
    OSError
        As the operating system reports it.
    """
    with DirectFile(path, os.O_RDONLY, direct=direct) as file:
        found = file.size()
        if found != form.file_bytes:
            raise CorruptTileError(
                f"{path} has {found} bytes instead of {form.file_bytes}; restore the file or make the matrix again"
            )
        straight = (
            how == "full"
            and not form.packed
            and dest.dtype == form.stored
            and part.c1 - part.c0 == form.shape[1]
            and (part.r1 - part.r0 == form.shape[0] or not form.checksum)
            and rows_contiguous(dest)
        )
        if not (straight and _read_straight(file, form, part.r0, dest)):
            _read_steps(file, form, part, dest, how)
        return direct and not file.refused


def _read_straight(file: DirectFile, form: ChunkFormat, row: int, dest: NDArray[Any]) -> bool:
    """Read whole rows into ``dest`` itself; False if its address or strides do not allow that."""
    offset = form.offset(row)
    if file.takes(dest, offset):
        body, rest = dest, 0
    elif dest.flags.c_contiguous and not (address(dest) | offset) % ALIGNMENT:
        rest = dest.nbytes % ALIGNMENT
        body = dest.reshape(-1).view(np.uint8)[: dest.nbytes - rest]
    else:
        return False
    _expect(file, file.read(body, offset) if body.size else 0, body.nbytes)
    tail_bytes = rest + (_CRC_BYTES if form.checksum else 0)
    if tail_bytes:
        tail = tail_buffer()[: round_up(tail_bytes, ALIGNMENT)]
        _expect(file, file.read(tail, offset + body.nbytes), tail_bytes)
        if rest:
            dest.reshape(-1).view(np.uint8)[-rest:] = tail[:rest]
        if form.checksum:
            _verify(file, tail[rest:tail_bytes], crc32c(tail[:rest], crc32c(body)))
    return True


def _read_steps(file: DirectFile, form: ChunkFormat, part: Rect, dest: NDArray[Any], how: str) -> None:
    first, last = (0, form.shape[0]) if form.checksum else (part.r0, part.r1)
    for r0, r1, raw in _raw_rows(file, form, first, last):
        lo, hi = max(r0, part.r0), min(r1, part.r1)
        if lo >= hi:
            continue
        if not form.packed:
            block = raw.view(form.stored).reshape(r1 - r0, form.shape[1])[lo - r0 : hi - r0, part.c0 : part.c1]
            _place_rows(dest, block, lo - part.r0, how)
            continue
        width = form.shape[1]
        step = max(1, _BITS_STEP // width)
        for s0 in range(lo, hi, step):
            s1 = min(hi, s0 + step)
            bits = np.unpackbits(raw[form.offset(s0) - form.offset(r0) : form.end(s1) - form.offset(r0)])
            skip = s0 * width % 8
            block = bits[skip : skip + (s1 - s0) * width].view(np.bool_).reshape(s1 - s0, width)[:, part.c0 : part.c1]
            _place_rows(dest, block, s0 - part.r0, how)


def _place_rows(dest: NDArray[Any], block: NDArray[Any], row: int, how: str) -> None:
    count = block.shape[0]
    place(dest[row : row + count] if how == "full" else dest[:, row : row + count], block, how)


def _raw_rows(file: DirectFile, form: ChunkFormat, first: int, last: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Rows ``first:last`` as bytes, a bufferful at a time; all rows, with the checksum verified after the last."""
    buffer = bounce_buffer(form.bounce_bytes)
    room = buffer.size - 3 * ALIGNMENT  # up to a block before, and one after for the checksum
    step = max(1, room * 8 // form.shape[1] if form.packed else room // form.row_bytes)
    crc = checked = 0
    for r0 in range(first, last, step):
        r1 = min(last, r0 + step)
        offset, end = form.offset(r0), form.end(r1)
        start = offset // ALIGNMENT * ALIGNMENT
        wanted = end - start + (_CRC_BYTES if form.checksum and r1 == last else 0)
        _expect(file, file.read(buffer[: round_up(wanted, ALIGNMENT)], start), wanted)
        if form.checksum:
            crc, checked = crc32c(buffer[checked - start : end - start], crc), end
        yield r0, r1, buffer[offset - start : end - start]
        if form.checksum and r1 == last:
            _verify(file, buffer[end - start : end - start + _CRC_BYTES], crc)


def chunk_checksum(path: str, form: ChunkFormat, *, direct: bool = True) -> int | None:
    """The crc32c of a chunk file's elements as :func:`stage_chunk` gave it; ``None`` if the file is missing or damaged."""
    try:
        with DirectFile(path, os.O_RDONLY, direct=direct) as file:
            if file.size() != form.file_bytes:
                return None
            buffer, crc, at = bounce_buffer(form.bounce_bytes), 0, 0
            stored = b""
            while at < form.file_bytes:
                got = file.read(buffer[: min(buffer.size, round_up(form.file_bytes - at, ALIGNMENT))], at)
                if got == 0:
                    return None
                payload = min(got, max(0, form.payload_bytes - at))
                crc = crc32c(buffer[:payload], crc)
                stored += buffer[payload:got].tobytes()
                at += got
            return crc if not form.checksum or int.from_bytes(stored, "little") == crc else None
    except FileNotFoundError:
        return None


def _expect(file: DirectFile, got: int, wanted: int) -> None:
    if got < wanted:
        raise CorruptTileError(f"{file.path} ended {wanted - got} bytes early while being read; was it truncated just now?")


def _verify(file: DirectFile, stored: NDArray[np.uint8], computed: int) -> None:
    expected = int.from_bytes(stored.tobytes(), "little")
    if expected != computed:
        raise CorruptTileError(
            f"{file.path} is damaged: its crc32c checksum says {expected:#010x}, its data give {computed:#010x}; "
            "restore the file or make the matrix again"
        )


# --- writing -------------------------------------------------------------------------------------------------------


class Staged(NamedTuple):
    """What :func:`stage_chunk` wrote."""

    direct: bool
    """False when the file system refuses direct I/O."""
    checksum: int
    """crc32c of the elements in the file, zeros beyond the matrix's edge included."""
    seconds: float
    """Spent on the checksum."""


def write_chunk(path: str, form: ChunkFormat, data: NDArray[Any], *, direct: bool = True) -> bool:
    """Replace a chunk file atomically; ``data`` may be smaller than the chunk (at the edge), zeros fill the rest.

    Returns
    -------
    bool
        False when the file system refuses direct I/O.
    """
    temporary = f"{path}.{os.getpid()}-{next(_temporary)}.tmp"
    stays_direct = _write_file(temporary, form, data, direct, _Checksum() if form.checksum else None)
    try:
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return stays_direct


def stage_chunk(path: str, form: ChunkFormat, data: NDArray[Any], *, direct: bool = True) -> Staged:
    """Write a chunk file under a name of its own, for somebody else to rename, and say its checksum."""
    checksum = _Checksum()
    stays_direct = _write_file(path, form, data, direct, checksum)
    return Staged(stays_direct, checksum.value, checksum.seconds)


class _Checksum:
    """A crc32c as it grows over a file's elements."""

    __slots__ = ("seconds", "value")

    def __init__(self) -> None:
        self.value, self.seconds = 0, 0.0

    def add(self, data: NDArray[Any], zeros: int = 0) -> None:
        """Append an array with contiguous rows, then ``zeros`` zero bytes."""
        start = time.perf_counter()
        self.value = crc32c_zeros(zeros, crc32c(data, self.value))
        self.seconds += time.perf_counter() - start

    def tobytes(self) -> bytes:
        return self.value.to_bytes(_CRC_BYTES, "little")


def _write_file(path: str, form: ChunkFormat, data: NDArray[Any], direct: bool, checksum: _Checksum | None) -> bool:
    """Write all of a chunk file, or leave none; False when the file system refuses direct I/O."""
    try:
        with DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, direct=direct) as file:
            straight = not form.packed and data.dtype == form.stored and data.shape[1] == form.shape[1] and rows_contiguous(data)
            if not (straight and _write_straight(file, form, data, checksum)):
                _write_steps(file, form, data, checksum)
            return direct and not file.refused
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _write_straight(file: DirectFile, form: ChunkFormat, data: NDArray[Any], checksum: _Checksum | None) -> bool:
    """Write full-width rows from ``data`` itself; False if its address or strides do not allow that."""
    missing = form.payload_bytes - data.nbytes  # rows beyond the matrix's edge: zeros that take no space
    if file.takes(data, 0):
        body, rest = data, 0
    elif data.flags.c_contiguous and not address(data) % ALIGNMENT:
        rest = data.nbytes % ALIGNMENT
        body = data.reshape(-1).view(np.uint8)[: data.nbytes - rest]
    else:
        return False
    if form.checksum and missing and (rest or (file.direct and form.payload_bytes % ALIGNMENT)):
        return False
    if body.size:
        file.write(body, 0)
    tail = data.reshape(-1).view(np.uint8)[data.nbytes - rest :].tobytes() if rest else b""
    at = data.nbytes - rest
    if checksum is not None:
        checksum.add(body)
        checksum.add(np.frombuffer(tail, np.uint8), zeros=missing)
    if form.checksum:
        assert checksum is not None
        tail += checksum.tobytes()
        at += missing
    if tail:  # O_DIRECT takes no odd length: whole blocks, then the file is cut
        block = tail_buffer()[: round_up(len(tail), ALIGNMENT)]
        block[: len(tail)] = np.frombuffer(tail, np.uint8)
        block[len(tail) :] = 0
        file.write(block, at)
    if missing or tail:
        file.truncate(form.file_bytes)
    return True


def _write_steps(file: DirectFile, form: ChunkFormat, data: NDArray[Any], checksum: _Checksum | None) -> None:
    stream = _Stream(file, bounce_buffer(form.bounce_bytes), checksum)
    height, width = form.shape
    rows = height if form.checksum else data.shape[0]  # without a checksum, rows beyond the edge need not be written
    if form.packed:
        stream.append(np.array([-height * width % 8], np.uint8))
        unit = 8 // math.gcd(width, 8)
        step = max(unit, _BITS_STEP // width // unit * unit)
    else:
        step = max(1, (stream.buffer.size - ALIGNMENT) // form.row_bytes)
    for r0 in range(0, rows, step):
        r1 = min(rows, r0 + step)
        part = data[r0:r1]
        if form.packed:
            if part.dtype != np.bool_ or part.shape != (r1 - r0, width) or not part.flags.c_contiguous:
                padded = np.zeros((r1 - r0, width), np.bool_)
                cast_unsafe(padded[: part.shape[0], : part.shape[1]], part)
                part = padded
            stream.append(np.packbits(part))
        else:
            block = stream.room((r1 - r0) * form.row_bytes).view(form.stored).reshape(r1 - r0, width)
            cast_unsafe(block[: part.shape[0], : part.shape[1]], part)
            block[: part.shape[0], part.shape[1] :] = 0
            block[part.shape[0] :] = 0
    stream.finish(form)
    file.truncate(form.file_bytes)


class _Stream:
    """Bytes on their way to a file through an aligned buffer, whole blocks at a time, checksummed as they go."""

    def __init__(self, file: DirectFile, buffer: NDArray[np.uint8], checksum: _Checksum | None) -> None:
        self.file, self.buffer, self.checksum = file, buffer, checksum
        self.used = self.offset = 0

    def room(self, count: int) -> NDArray[np.uint8]:
        """Space for the next ``count`` bytes, to be filled by the caller."""
        if self.used + count > self.buffer.size:
            self._flush()
        self.used += count
        return self.buffer[self.used - count : self.used]

    def append(self, data: NDArray[np.uint8]) -> None:
        self.room(data.size)[...] = data

    def _flush(self) -> None:
        whole = self.used // ALIGNMENT * ALIGNMENT
        if whole:
            if self.checksum is not None:
                self.checksum.add(self.buffer[:whole])
            self.file.write(self.buffer[:whole], self.offset)
        self.offset += whole
        self.buffer[: self.used - whole] = self.buffer[whole : self.used]
        self.used -= whole

    def finish(self, form: ChunkFormat) -> None:
        """Write what is left, padded to whole blocks (the caller then cuts the file)."""
        self._flush()
        if self.checksum is not None:
            self.checksum.add(self.buffer[: self.used], zeros=form.payload_bytes - self.offset - self.used)
        if form.checksum:
            assert self.checksum is not None
            self.append(np.frombuffer(self.checksum.tobytes(), np.uint8))
        padded = round_up(self.used, ALIGNMENT)
        if padded:
            self.buffer[self.used : padded] = 0
            self.file.write(self.buffer[:padded], self.offset)
