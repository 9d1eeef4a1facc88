"""Random matrices that need no storage: each element is computed from a seed and its place."""

from __future__ import annotations

import operator
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import ConfigError, ShapeError
from pycauset.storage import TileStore, element_type
from pycauset.tiling import Rect

__all__ = ["CovarianceStore", "SeededStore"]

_BLOCK: Final = (64, 1024)  # elements mixed at a time: they stay in the second-level cache
_NUGGET: Final = 1 / 64


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
        self.dtype = _kind(seed, dtype)
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


class CovarianceStore(TileStore):
    """The covariance matrix of n random points in the plane: positive definite for certain, dense, of full rank.

    Element (i, j) is ``1 / (1 + |p_i - p_j|²)``, the rational quadratic (Cauchy) kernel, which is positive definite in any
    dimension [1]_, for points spread over a square of area n. On the diagonal a nugget of 1/64 is added, below which no
    eigenvalue can be; the largest is about ``π ln n``, so that the condition number stays below a few thousand. Complex matrices
    are ``K_ij z_i conj(z_j)`` for random z on the unit circle. About 3 ns an element on one core. Every operation is rounded
    as IEEE 754 says, so that an element depends neither on how tiles are cut nor on the machine.

    Parameters
    ----------
    seed : int
        At least 0.
    n : int
    dtype : {"float32", "float64", "complex64", "complex128"}
    chunks : (int, int), optional
        As for `SeededStore`.

    Raises
    ------
    ConfigError
        If the seed is negative, or the element type is another one.

    References
    ----------
    .. [1] C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, section 4.2.1.

    Examples
    --------
    >>> a = CovarianceStore(7, 100, "float64")
    >>> out = np.empty((100, 100))
    >>> a.read(Rect(0, 100, 0, 100), out)
    >>> bool(np.array_equal(out, out.T)), bool(np.linalg.eigvalsh(out)[0] >= 1 / 64)
    (True, True)
    """

    def __init__(self, seed: int, n: int, dtype: DTypeLike, chunks: tuple[int, int] | None = None) -> None:
        self.dtype = _kind(seed, dtype)
        self.shape = (int(n), int(n))
        self.chunks = chunks or (_chunk_side(n), _chunk_side(n))
        self.identity = ("covariance", int(seed), self.shape, self.dtype.name)
        self.attributes = {}
        real = np.empty(0, self.dtype).real.dtype
        rng = np.random.default_rng(int(seed))
        self._points = (rng.random((2, n)) * n**0.5).astype(real)
        angle = rng.random(n) * (2 * np.pi) if self.dtype.kind == "c" else np.zeros(0)
        self._phase = np.cos(angle).astype(real), np.sin(angle).astype(real)
        self._local = threading.local()

    @property
    def generation(self) -> int | None:
        return 0

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        return 3 * 8 * _BLOCK[0] * _BLOCK[1]

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        for r0 in range(rect.r0, rect.r1, _BLOCK[0]):
            rows = slice(r0, min(r0 + _BLOCK[0], rect.r1))
            for c0 in range(rect.c0, rect.c1, _BLOCK[1]):
                cols = slice(c0, min(c0 + _BLOCK[1], rect.c1))
                self._fill(rows, cols, out[r0 - rect.r0 : rows.stop - rect.r0, c0 - rect.c0 : cols.stop - rect.c0])

    def _fill(self, rows: slice, cols: slice, out: NDArray[Any]) -> None:
        x, y = self._points
        scratch: tuple[NDArray[Any], ...] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = tuple(np.empty(_BLOCK, x.dtype) for _ in range(3))
        k, t, u = (part.reshape(-1)[: out.size].reshape(out.shape) for part in scratch)
        np.subtract(x[rows, None], x[None, cols], out=k)
        np.multiply(k, k, out=k)
        np.subtract(y[rows, None], y[None, cols], out=t)
        np.multiply(t, t, out=t)
        np.add(k, t, out=k)
        np.add(k, 1, out=k)
        direct = out.dtype == k.dtype
        np.divide(1, k, out=out if direct else k)
        if direct:
            k = out
        first, last = max(rows.start, cols.start), min(rows.stop, cols.stop)
        if first < last:
            diagonal = np.arange(first, last)
            k[diagonal - rows.start, diagonal - cols.start] += _NUGGET
        if self.dtype.kind == "c":
            c, s = self._phase
            for part, (a, b), (d, e), combine in (
                (out.real, (c, c), (s, s), np.add),
                (out.imag, (s, c), (c, s), np.subtract),
            ):
                np.multiply(a[rows, None], b[None, cols], out=t)
                np.multiply(d[rows, None], e[None, cols], out=u)
                combine(t, u, out=t)
                np.multiply(t, k, out=part)
        elif not direct:
            out[...] = k

    def __repr__(self) -> str:
        return f"<CovarianceStore {self.identity[1]} {self.shape[0]} x {self.shape[1]} {self.dtype}>"


def _kind(seed: int, dtype: DTypeLike) -> np.dtype[Any]:
    """The element type of a random matrix, if it can be made."""
    if operator.index(seed) < 0:
        raise ConfigError(f"seed is {seed!r}; it must be at least 0")
    kind = element_type(dtype, "a random matrix")
    if kind.name not in ("float32", "float64", "complex64", "complex128"):
        raise ConfigError(f"a random matrix of {kind} is not possible; use float32, float64, complex64 or complex128")
    return kind


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
