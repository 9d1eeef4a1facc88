"""A failed operation gives its result back at once, not when the collector of cycles happens to run."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.solver import Factor, multiply
from pycauset.storage import create_store
from pycauset.tiling import Rect
from tests.tickets import host_bytes_in_use

N = 1100


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


def stored(path, array):
    store = create_store(path, array.shape, array.dtype, chunks=(128, 128))
    store.write(Rect(0, N, 0, N), array)
    store.commit()
    return pycauset.open(path)


def failing_operand():
    def elements(i, j):
        raise ZeroDivisionError("no such element")

    return pycauset.from_function(elements, (N, N), "float64")


def interrupt(done, total):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("operation", "how", "to_disk"),
    [
        ("matmul", "operand", False),
        ("matmul", "operand", True),
        ("matmul", "interruption", False),
        ("matmul", "interruption", True),
        ("cholesky", "operand", False),
        ("cholesky", "operand", True),
        ("cholesky", "interruption", True),  # in RAM one call of LAPACK does it all
    ],
)
def test_without_the_collector(operation, how, to_disk, tmp_path):
    matrix = stored(tmp_path / "a.zarr", 2 * np.eye(N))
    operand = failing_operand() if how == "operand" else matrix
    expected = KeyboardInterrupt if how == "interruption" else errors.StoreError

    def fail(number):
        path = tmp_path / f"{number}.zarr"
        options = {} if how == "operand" else {"memory": "16MB" if to_disk else "32MB", "progress": interrupt}
        try:
            if operation == "matmul":
                out = create_store(path, (N, N), "float64", chunks=(128, 128)) if to_disk else None
                multiply(Factor(matrix.store), Factor(operand.store), out=out, **options)
            else:
                pycauset.linalg.cholesky(operand, out=path if to_disk else None, **options)
        except expected:
            return
        pytest.fail("it went through")

    fail(0)  # what a process's first operation keeps (modules, handles) is none of this test's business
    gc.collect()
    gc.disable()
    try:
        before = host_bytes_in_use(), descriptors()
        for number in range(1, 4):
            fail(number)
        assert (host_bytes_in_use(), descriptors()) == before
    finally:
        gc.enable()
