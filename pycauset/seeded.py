"""A random matrix that needs no storage: each element is computed from a seed and its place."""

from __future__ import annotations

import operator
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import ConfigError, ShapeError
from pycauset.storage import TileStore, element_type
from pycauset.tiling import Rect

__all__ = ["SeededStore"]

_BLOCK: Final = (64, 1024)  # elements mixed at a time: they stay in the second-level cache


class SeededStore(TileStore):
    """A matrix of independent-looking numbers, uniform in [-0.5, 0.5), each computed from the seed and its place.

    About 1.5 ns an element on one core. Values have 32 random bits (24 for single precision), so every type that can
    hold them gets the same ones.

    Parameters
    ----------
    seed : int
        At least 0.
    shape : (int, int)
        Sides below 2**32.
    dtype : {"float32", "float64", "complex64", "complex128"}
    chunks : (int, int), optional
        About eight to a side, 1024 elements at most, by default.

    Raises
    ------
    ConfigError
        If the seed is negative, or the element type is another one.

    Examples
    --------
    >>> a, b = SeededStore(7, (100, 100), "float64"), SeededStore(7, (100, 100), "float64")
    >>> out = np.empty((2, 100)), np.empty((100, 3))
    >>> a.read(Rect(40, 42, 0, 100), out[0])
    >>> b.read(Rect(0, 100, 10, 13), out[1])
    >>> bool(np.array_equal(out[0][:, 10:13], out[1][40:42])), a.identity == b.identity
    (True, True)
    """

    def __init__(self, seed: int, shape: tuple[int, int], dtype: DTypeLike, chunks: tuple[int, int] | None = None) -> None:
        if operator.index(seed) < 0:
            raise ConfigError(f"seed is {seed!r}; it must be at least 0")
        self.dtype = element_type(dtype, "a random matrix")
        if self.dtype.name not in ("float32", "float64", "complex64", "complex128"):
            raise ConfigError(f"a random matrix of {self.dtype} is not possible; use float32, float64, complex64 or complex128")
        if not all(0 <= n < 2**32 for n in shape):
            raise ShapeError(f"a random matrix of shape {shape} is not possible; each side must be from 0 to 2**32 - 1")
        self.shape = (int(shape[0]), int(shape[1]))
        self.chunks = chunks or (_chunk_side(self.shape[0]), _chunk_side(self.shape[1]))
        self.identity = ("seeded", int(seed), self.shape, self.dtype.name)
        self.attributes = {}
        self._keys = [np.uint32(k) for k in np.random.SeedSequence(int(seed)).generate_state(3)]
        # Single precision holds 24 bits exactly: then it does not matter in which type a tile is read.
        self._shift = np.int32(8 if self.dtype.name in ("float32", "complex64") else 0)
        self._scale = 2.0 ** (int(self._shift) - 32)
        self._local = threading.local()

    @property
    def generation(self) -> int | None:
        return 0

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        return 8 * _BLOCK[0] * _BLOCK[1] + 16 * (shape[0] + shape[1])

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        rows, cols = _mix(rect.r0, rect.r1, self._keys[0]), _mix(rect.c0, rect.c1, self._keys[1])
        parts = [(out, np.uint32(0))] if out.dtype.kind != "c" else [(out.real, np.uint32(0))]
        if self.dtype.kind == "c":
            parts.append((out.imag, self._keys[2]))
        elif out.dtype.kind == "c":
            out.imag[...] = 0
        for part, key in parts:
            left = rows ^ key
            for r in range(0, len(rows), _BLOCK[0]):
                for c in range(0, len(cols), _BLOCK[1]):
                    self._fill(
                        left[r : r + _BLOCK[0], None], cols[None, c : c + _BLOCK[1]], part[r : r + _BLOCK[0], c : c + _BLOCK[1]]
                    )

    def _fill(self, rows: NDArray[np.uint32], cols: NDArray[np.uint32], out: NDArray[Any]) -> None:
        """Mix row and column keys: multiply, fold the high bits down, multiply; then an integer becomes a fraction."""
        scratch: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
        size = out.shape[0] * out.shape[1]
        x, t = (s.reshape(-1)[:size].reshape(out.shape) for s in scratch)
        np.bitwise_xor(rows, cols, out=x)
        np.multiply(x, np.uint32(0x9E3779B1), out=x)
        np.right_shift(x, np.uint32(15), out=t)
        np.bitwise_xor(x, t, out=x)
        np.multiply(x, np.uint32(0x85EBCA6B), out=x)
        signed = x.view(np.int32)
        if self._shift:
            np.right_shift(signed, self._shift, out=signed)
        np.copyto(out, signed, casting="same_kind")
        np.multiply(out, self._scale, out=out)

    def __repr__(self) -> str:
        return f"<SeededStore {self.identity[1]} {self.shape[0]} x {self.shape[1]} {self.dtype}>"


def _chunk_side(n: int) -> int:
    side = 1024
    while side > 32 and side * 8 > n:
        side //= 2
    return max(1, min(side, n))


def _mix(start: int, stop: int, key: np.uint32) -> NDArray[np.uint32]:
    """One 32-bit key for each index, no two alike: the steps of MurmurHash3's finalizer are bijections."""
    h = np.arange(start, stop, dtype=np.uint32) ^ key
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return h
