"""The GPU's kernel table: cuBLAS and cuSOLVER on row-major tiles, and kernels of our own for the rest.

A row-major tile is its transpose in the libraries' column-major eyes: operands of a product change places, sides and
triangles are swapped, operations stay. No kernel allocates: what the libraries need besides the tiles is a buffer for each
stream, which grows to the largest task (:meth:`CudaKernels.prepare` grows it before a run).

Whether a factorisation succeeded is known only when the GPU gets there. Kernels that may fail return a function that raises
the typed error; it may be called once the job is complete, on any thread.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pycauset.devices.cuda_solve import BLOCK, ITEMSIZE, part, solve, solve_by_blocks, workspace_bytes
from pycauset.devices.cuda_source import CLEAN, UNKNOWN, VERDICT, cuda_function
from pycauset.devices.cusolver import Cusolver
from pycauset.devices.pivots import non_finite, not_positive_definite, singular
from pycauset.errors import DeviceError
from pycauset.tiling import round_up

if TYPE_CHECKING:
    from pycauset.devices.cuda_lane import CudaLane
    from pycauset.devices.cupy import CupyDevice, TileView

__all__ = ["CudaKernels", "CudaStream"]

Check = Callable[[], None]

#: Triangles up to this order are inverted by a solve with the identity, larger ones by halves.
_LEAF: Final = 128
_SQUARE: Final = 32  # side of the square that a block of threads works on
_VERDICTS: Final = 1024  # outcomes of one stream that may be unread before more memory is pinned
_ALIGNMENT: Final = 256
_REAL: Final = {"float32": ("float", 1), "float64": ("double", 1), "complex64": ("float", 2), "complex128": ("double", 2)}
_OPPOSITE: Final = {"L": "R", "R": "L"}
_MIRRORED: Final = {"L": "U", "U": "L"}
_PART: Final = {"full": 0, "lower": 1, "upper": 2}


class CudaStream:
    """A raw stream as CuPy takes foreign ones."""

    def __init__(self, stream: int) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream


class _Slot:
    """A place in page-locked memory for one verdict; it goes back to its stock when nobody holds it any more.

    The next verdict written there comes later on the same stream, so a job that nobody asked cannot overwrite it.
    """

    __slots__ = ("_record", "_stock", "address")

    def __init__(self, stock: deque[tuple[int, Any]]) -> None:
        self._stock = stock
        self.address, self._record = stock.popleft()
        self._record["kind"] = UNKNOWN

    def __del__(self) -> None:
        self._stock.append((self.address, self._record))

    def read(self) -> Any:
        if self._record["kind"] == UNKNOWN:
            raise DeviceError("a kernel's outcome was asked for before the kernel was complete")
        return self._record


class _Workspace:
    """What the kernels of one stream need besides tiles: a cuSOLVER handle, a device buffer, places for verdicts."""

    def __init__(self, device: CupyDevice, stream: int) -> None:
        self.lock = threading.Lock()  # held from asking for the buffer until its last user is on the stream
        self._device = device
        self._stream = stream
        self._address = self._nbytes = 0
        self._ticket: Any = None
        self._slots: deque[tuple[int, Any]] = deque()

    @functools.cached_property
    def solver(self) -> Cusolver:
        return Cusolver(self._stream)

    def buffer(self, nbytes: int) -> int:
        """The address of at least ``nbytes`` of device memory."""
        if nbytes > self._nbytes:
            self._grow(nbytes)
        return self._address

    def _grow(self, nbytes: int) -> None:
        from pycauset.governor import governor

        runtime = self._device.runtime
        self._free()
        ticket = governor().require("device", nbytes, owner="workspace of the GPU's kernels")
        try:
            try:
                self._address = runtime.malloc(nbytes)
            except runtime.CUDARuntimeError:
                import cupy

                cupy.get_default_memory_pool().free_all_blocks()
                self._address = runtime.malloc(nbytes)
        except BaseException:
            ticket.release()
            raise
        self._nbytes, self._ticket = nbytes, ticket

    def _free(self) -> int:
        freed = self._nbytes
        if freed:
            self._device.runtime.free(self._address)  # waits for the GPU: nobody uses it any more
            self._ticket.release()
            self._address = self._nbytes = 0
        return freed

    def release(self) -> int:
        """Free the buffer unless a kernel is just being given it; returns its bytes."""
        if not self.lock.acquire(blocking=False):
            return 0
        try:
            return self._free()
        finally:
            self.lock.release()

    def slot(self) -> _Slot:
        if not self._slots:
            address = self._device.runtime.hostAlloc(_VERDICTS * VERDICT.itemsize, 0)
            memory: Any = (ctypes.c_ubyte * (_VERDICTS * VERDICT.itemsize)).from_address(address)
            records = np.frombuffer(memory, VERDICT)
            self._slots.extend((address + i * VERDICT.itemsize, records[i : i + 1].reshape(())) for i in range(_VERDICTS))
        return _Slot(self._slots)


class CudaKernels:
    """Kernels of one GPU; ``table`` maps their names to them."""

    def __init__(self, device: CupyDevice) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._workspaces: dict[tuple[int, str], _Workspace] = {}
        self.runtime = device.runtime
        self.table: dict[str, Callable[..., Check | None]] = {
            "check_diagonal": self._check_diagonal,
            "copy": self._copy,
            "fill_identity": self._fill_identity,
            "gemm": self._gemm,
            "potrf": self._potrf,
            "rank_k": self._rank_k,
            "scale": self._scale,
            "trmm": self._trmm,
            "trsm": self._trsm,
            "trtri": self._trtri,
        }

    # -- workspace ------------------------------------------------------------------------------------------------

    def workspace_bytes(self, kernel: str, n: int, dtype: str, streams: Sequence[int]) -> int:
        """Bytes of device memory that ``kernel`` on tiles of order ``n`` needs besides tiles, on all ``streams`` together."""
        return sum(self._needed(self._workspace(stream), kernel, n, dtype) for stream in streams)

    def prepare(self, kernel: str, n: int, dtype: str, streams: Sequence[int]) -> None:
        """Make the buffers that :meth:`workspace_bytes` counts.

        Raises
        ------
        MemoryLimitError
            If the governor or CUDA refuses.
        """
        for stream in streams:
            workspace = self._workspace(stream, "inverses" if kernel == "trsm" else "")
            with workspace.lock:
                workspace.buffer(self._needed(workspace, kernel, n, dtype))

    def release(self) -> int:
        """Free the buffers; the next task that needs one takes it again. Returns the bytes freed."""
        with self._lock:
            workspaces = list(self._workspaces.values())
        return sum(workspace.release() for workspace in workspaces)

    def _needed(self, workspace: _Workspace, kernel: str, n: int, dtype: str) -> int:
        if kernel == "potrf":
            return max(_potrf_layout(workspace.solver, dtype, uplo, n, n)[-1] for uplo in "LU")
        if kernel == "trsm":
            return workspace_bytes(n, n, dtype) if n > BLOCK else 0
        return _leaf_bytes(n, dtype) if kernel == "trtri" else 0

    def _workspace(self, stream: int, use: str = "") -> _Workspace:
        with self._lock:
            found = self._workspaces.get((stream, use))
            if found is None:
                found = self._workspaces[stream, use] = _Workspace(self._device, stream)
            return found

    # -- products and solves --------------------------------------------------------------------------------------

    def _gemm(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """``C = alpha op(A) op(B) + beta C``; params (alpha, beta, op_a, op_b).

        Three more, (cols, row_b, row_c), ask for a part where op_b is "N": ``cols`` columns of A, rows of B and C from those on.
        """
        alpha, beta, op_a, op_b, *part = params
        a, b, c = reads[0], reads[1], writes[0]
        rows, depth, from_b, from_c = c.rows, a.cols if op_a == "N" else a.rows, b.address, c.address
        if part:
            cols, row_b, row_c = part
            rows, depth = (a.rows, cols) if op_a == "N" else (cols, a.rows)
            from_b += row_b * b.ld * b.dtype.itemsize
            from_c += row_c * c.ld * c.dtype.itemsize
        lane.blas.gemm(c.kind, op_b, op_a, c.cols, rows, depth, alpha, from_b, b.ld, a.address, a.ld, beta, from_c, c.ld)  # type: ignore[union-attr]

    def _rank_k(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """SYRK or HERK on the lower triangle, mirrored at the end; params (alpha, beta, op_a, hermitian, last).

        A sixth, ``"U"``, asks for the upper triangle, which is not mirrored.
        """
        alpha, beta, op_a, hermitian, last, *uplo = params
        a, c = reads[0], writes[0]
        depth = a.cols if op_a == "N" else a.rows
        flag = ("H" if hermitian and c.dtype.kind == "c" else "T") if op_a == "N" else "N"
        assert lane.blas is not None
        where = uplo[0] if uplo else "L"
        lane.blas.rank_k(
            c.kind, flag, c.rows, depth, alpha, a.address, a.ld, beta, c.address, c.ld, hermitian=hermitian, uplo=where
        )
        if last:
            self._on_squares("mirror_lower", c, lane, _ptr(c), _long(c.rows), _long(c.ld), _width(c), np.int32(hermitian))

    def _trsm(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """``X = alpha op(T)⁻¹ X`` or ``alpha X op(T)⁻¹``; params (side, uplo, op, unit, alpha), and perhaps a key.

        Tasks of one run that give the same key promise the same T. cuBLAS solves with large triangles well below gemm's rate,
        so T's diagonal blocks of order 512 are inverted once, and each solve is products with them and with T.
        """
        t, x = reads[0], writes[0]
        assert lane.blas is not None
        if len(params) > 5 and t.rows > BLOCK and params[4] == 1.0:
            space = self._workspace(lane.stream, "inverses")
            with space.lock:
                address = space.buffer(workspace_bytes(t.rows, max(t.rows, x.rows, x.cols), t.kind))
                solve_by_blocks(self, t, x, params[:4], params[5], address, lane)
        else:
            solve(lane.blas, t, x, *params[:5])

    def _trmm(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """``C = alpha op(T) B`` or ``alpha B op(T)``; params (side, uplo, op, unit, alpha)."""
        side, uplo, op, unit, alpha = params
        t, b, c = reads[0], reads[1], writes[0]
        assert lane.blas is not None
        lane.blas.trmm(
            c.kind,
            _OPPOSITE[side],
            _MIRRORED[uplo],
            op,
            unit,
            c.cols,
            c.rows,
            alpha,
            t.address,
            t.ld,
            b.address,
            b.ld,
            c.address,
            c.ld,
        )

    # -- factors and inverses -------------------------------------------------------------------------------------

    def _potrf(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> Check:
        """``C = L`` with ``C = L Lᴴ``, or ``C = U`` with ``C = Uᴴ U``, rest zero; params (offset, lower)."""
        offset, lower = params
        c = writes[0]
        n, uplo = c.rows, "U" if lower else "L"
        space = self._workspace(lane.stream)
        with space.lock:
            info, diagonal, nbytes = _potrf_layout(space.solver, c.kind, uplo, n, c.ld)
            buffer = space.buffer(nbytes)
            slot = space.slot()
            tile, saved = (_ptr(c), _long(n), _long(c.ld), _width(c)), np.uint64(buffer + diagonal)
            self._launch("take_diagonal", c, lane, (-(-n // 256),), (256,), *tile, saved)
            space.solver.potrf(c.kind, uplo, n, c.address, c.ld, buffer, buffer + info)
            verdict = np.int32(lower), saved, np.uint64(buffer + info), np.uint64(slot.address)
            self._launch("judge_pivots", c, lane, (1,), (256,), *tile, *verdict)
        self._on_squares("clear_triangle", c, lane, *tile, np.int32(lower))
        return functools.partial(_judge_pivots, slot, offset)

    def _trtri(
        self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane
    ) -> Check | None:
        """``T = T⁻¹`` of a triangle, written in full: rest zero, ones on a unit diagonal; params (uplo, unit, offset).

        By halves: with ``T = [A 0; B C]`` the inverse is ``[A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹]``, and ``B`` comes first.
        """
        uplo, unit, offset = params
        t = writes[0]
        check = None if unit else self._judge(t, lane, offset, zeros_only=True)
        space = self._workspace(lane.stream)
        with space.lock:
            scratch = space.buffer(_leaf_bytes(t.rows, t.kind))
            self._invert(t, uplo, unit, scratch, lane)
        self._on_squares("clear_triangle", t, lane, _ptr(t), _long(t.rows), _long(t.ld), _width(t), np.int32(uplo == "L"))
        return check

    def _invert(self, t: TileView, uplo: str, unit: bool, scratch: int, lane: CudaLane) -> None:
        assert lane.blas is not None
        n = t.rows
        if n <= _LEAF:
            inverse = t._replace(address=scratch, ld=n)
            self._fill_identity((), (inverse,), (1.0,), lane)
            solve(lane.blas, t, inverse, "L", uplo, "N", unit, 1.0)
            self._copy((inverse,), (t,), (1.0, "N", "lower" if uplo == "L" else "upper"), lane)
            return
        half = round_up(n // 2, _LEAF)
        first, last = part(t, 0, 0, half, half), part(t, half, half, n - half, n - half)
        if uplo == "L":
            corner = part(t, half, 0, n - half, half)
            solve(lane.blas, last, corner, "L", uplo, "N", unit, -1.0)
            solve(lane.blas, first, corner, "R", uplo, "N", unit, 1.0)
        else:
            corner = part(t, 0, half, half, n - half)
            solve(lane.blas, first, corner, "L", uplo, "N", unit, -1.0)
            solve(lane.blas, last, corner, "R", uplo, "N", unit, 1.0)
        self._invert(first, uplo, unit, scratch, lane)
        self._invert(last, uplo, unit, scratch, lane)

    def _check_diagonal(
        self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane
    ) -> Check:
        """Refuse zeros, NaN and infinity on the tile's diagonal; params (offset,)."""
        return self._judge(reads[0], lane, params[0], zeros_only=False)

    def _judge(self, t: TileView, lane: CudaLane, offset: int, *, zeros_only: bool) -> Check:
        space = self._workspace(lane.stream)
        with space.lock:
            slot = space.slot()
        arguments = _ptr(t), _long(min(t.rows, t.cols)), _long(t.ld), _width(t), np.int32(zeros_only), np.uint64(slot.address)
        self._launch("judge_diagonal", t, lane, (1,), (256,), *arguments)
        return functools.partial(_judge_diagonal, slot, offset)

    # -- copies and fills -----------------------------------------------------------------------------------------

    def _scale(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """``C = beta C``; params (beta,)."""
        c = writes[0]
        if params[0] == 0:
            self._fill_identity((), writes, (0.0,), lane)  # also over NaN
        else:
            self._copy((c,), (c,), (params[0], "N", "full"), lane)

    def _copy(self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane) -> None:
        """``C = alpha op(A)``, of which only a part is kept and the rest zero; params (alpha, op, part of full, lower, upper)."""
        alpha, op, part = params
        a, c = reads[0], writes[0]
        value = complex(alpha) if c.dtype.kind == "c" else complex(complex(alpha).real)
        self._on_squares(
            "copy_part",
            c,
            lane,
            _ptr(a),
            _long(a.ld),
            _ptr(c),
            _long(c.rows),
            _long(c.cols),
            _long(c.ld),
            _width(c),
            np.int32(op in "TH"),
            np.int32(op in "HC"),
            np.int32(_PART[part]),
            np.float64(value.real),
            np.float64(value.imag),
        )

    def _fill_identity(
        self, reads: Sequence[TileView], writes: Sequence[TileView], params: tuple[Any, ...], lane: CudaLane
    ) -> None:
        """``C = value I``; params (value,)."""
        c, value = writes[0], complex(params[0])
        size = _ptr(c), _long(c.rows), _long(c.cols), _long(c.ld), _width(c)
        self._on_squares("fill_identity", c, lane, *size, np.float64(value.real), np.float64(value.imag))

    # -- launching ------------------------------------------------------------------------------------------------

    def _on_squares(self, name: str, c: TileView, lane: CudaLane, *arguments: Any) -> None:
        """A kernel that gives every square of a tile to a block of threads."""
        self._launch(name, c, lane, (-(-c.cols // _SQUARE), -(-c.rows // _SQUARE)), (_SQUARE, 8), *arguments)

    def _launch(
        self, name: str, c: TileView, lane: CudaLane, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any
    ) -> None:
        if not all(grid):
            return  # nothing to do, which CUDA calls an error
        import cupy

        with cupy.cuda.Stream.from_external(CudaStream(lane.stream)):
            cuda_function(name, _REAL[c.kind][0])(grid, block, arguments)


def _ptr(tile: TileView) -> Any:
    return np.uint64(tile.address)


def _long(value: int) -> Any:
    return np.int64(value)


def _width(tile: TileView) -> Any:
    return np.int32(_REAL[tile.kind][1])


def _leaf_bytes(n: int, dtype: str) -> int:
    return min(n, _LEAF) ** 2 * ITEMSIZE[dtype]


def _potrf_layout(solver: Cusolver, dtype: str, uplo: str, n: int, ld: int) -> tuple[int, int, int]:
    """Where in the buffer cuSOLVER's result and the saved diagonal lie, behind cuSOLVER's own part; and the end of it all."""
    info = round_up(max(solver.potrf_bytes(dtype, uplo, n, ld), 1), _ALIGNMENT)
    diagonal = info + _ALIGNMENT
    return info, diagonal, round_up(diagonal + n * ITEMSIZE[dtype] // _REAL[dtype][1], _ALIGNMENT)


def _judge_pivots(slot: _Slot, offset: int) -> None:
    seen = slot.read()
    if seen["kind"] == CLEAN:
        return
    left, again = float(seen["real"]), float(seen["again"])
    # LAPACK leaves the pivot on the diagonal, cuSOLVER promises nothing: what the factor's row says counts first.
    value = next((value for value in (again, left) if math.isfinite(value) and value <= 0), again)
    raise not_positive_definite(offset + int(seen["index"]), value)


def _judge_diagonal(slot: _Slot, offset: int) -> None:
    seen = slot.read()
    if seen["kind"] == CLEAN:
        return
    index, real, imag = offset + int(seen["index"]), float(seen["real"]), float(seen["imag"])
    raise singular(index) if real == imag == 0 else non_finite(index, complex(real, imag) if imag else real)
