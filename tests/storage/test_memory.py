"""What a read or write allocates stays within what ``temporary_bytes`` announces. Sizes are primes: a dropped term shows."""

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycauset.storage import FunctionStore, TileStore, aligned_empty, as_store, create_store, open_store
from pycauset.storage.direct import crc32c
from pycauset.tiling import Rect

SLACK = 256 << 10  # interpreter objects and NumPy's cast buffers, 8192 elements each


def peak(work: Callable[[], None]) -> int:
    """Bytes that ``work`` allocates at most, in a fresh thread that owns no buffers yet."""
    found = []
    crc32c(np.zeros(1, np.uint8))  # the checksum library is not counted

    def run() -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work()
        found.append(tracemalloc.get_traced_memory()[1] - before)

    tracemalloc.start()
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        tracemalloc.stop()
    return found[0]


def check(store: TileStore, rect: Rect, array: np.ndarray, *, write: bool = False) -> None:
    announced = store.temporary_bytes(rect.shape, array.dtype)
    used = peak(lambda: (store.write if write else store.read)(rect, array))
    assert used <= announced + SLACK, f"{store} announced {announced} bytes, took {used}"


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize(
    ("dtype", "chunks", "structure"),
    [
        ("float64", (512, 512), "full"),
        ("float64", (1009, 1013), "full"),
        ("bool", (2039, 4099), "full"),
        ("complex128", (523, 523), "hermitian"),
    ],
)
def test_native(tmp_path: Path, dtype: str, chunks: tuple[int, int], structure: str, checksum: bool) -> None:
    shape = (2 * chunks[0] - 7, 2 * chunks[0] - 7) if structure != "full" else (2 * chunks[0] - 7, 2 * chunks[1] - 11)
    store = create_store(tmp_path / "a.zarr", shape, dtype, chunks=chunks, structure=structure, checksum=checksum)
    everything, chunk = Rect(0, shape[0], 0, shape[1]), Rect(0, chunks[0], 0, chunks[1])
    whole, tile = aligned_empty(shape, dtype), aligned_empty(chunks, dtype)
    whole[...] = tile[...] = 1
    check(store, everything, whole, write=True)
    check(store, chunk, tile, write=True)
    check(store, chunk, tile)
    check(store, everything, np.ones(shape, "complex64"))
    check(store, everything, np.ones(shape[::-1], dtype).T)
    part = Rect(5, chunks[0] + 9, 3, chunks[1] - 5)
    check(store, part, np.ones(part.shape, dtype), write=True)
    check(store, part, np.ones(part.shape, dtype))


def test_whole_aligned_chunks_take_nothing(tmp_path: Path) -> None:
    for checksum in (False, True):
        store = create_store(tmp_path / f"{checksum}.zarr", (1024, 512), "float64", chunks=(512, 512), checksum=checksum)
        assert store.temporary_bytes((512, 512), "float64") == 0
        assert store.temporary_bytes((1024, 512), "float64") == 0
        tile = aligned_empty((1024, 512), "float64")
        tile[...] = 1
        check(store, Rect(0, 1024, 0, 512), tile, write=True)
        check(store, Rect(0, 1024, 0, 512), tile)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((1499, 1009), order=order))
    store = open_store(tmp_path / "a.npy")
    check(store, Rect(0, 1499, 0, 1009), np.empty((1499, 1009)))
    check(store, Rect(0, 1499, 0, 1009), np.empty((1499, 1009), "float32"))
    check(store, Rect(3, 1400, 7, 907), np.empty((1397, 900)))
    store.begin_write()
    check(store, Rect(0, 1499, 0, 1009), np.ones((1499, 1009)), write=True)
    check(store, Rect(0, 1499, 0, 1009), np.ones((1499, 1009), "int64"), write=True)


def test_functions_and_arrays() -> None:
    for dtype in ("float32", "complex128"):
        store = FunctionStore(lambda i, j: 1 / (i[:, None] + j[None, :] + 1), (1999, 1733), dtype)
        check(store, Rect(0, 1999, 0, 1733), np.empty((1999, 1733), dtype))
    check(as_store(np.ones((997, 991))), Rect(0, 997, 0, 991), np.empty((997, 991), "complex64"))


def test_importing_the_package_leaves_heavy_libraries_out() -> None:
    heavy = ("zarr", "h5py", "google_crc32c", "scipy", "pydantic")
    code = f"import sys, pycauset.storage; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "[]\n"
