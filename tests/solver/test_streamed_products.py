"""Passes of a matrix past blocks of vectors: when copies begin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pycauset.drivers import block_product
from pycauset.drivers.jobs import TileJobs
from pycauset.governor import governor
from pycauset.solver.products import StreamedProduct
from pycauset.solver.run import operation_limits
from tests.drivers.fakes import FakeGpu, Pinned


def test_copies_begin_with_the_first_tasks_of_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when all tasks of a pass are known: the link would have nothing to do for as long as Python takes to make them."""
    monkeypatch.setattr(block_product, "_ROWS_ON_GPU", 64)
    monkeypatch.setattr(block_product, "_ROW_BYTES_ON_GPU", 64 * 8)
    monkeypatch.setattr(block_product, "_SMALLEST", 1 << 10)
    n, width = 1000, 3
    rng = np.random.default_rng()
    a = rng.standard_normal((n, n))
    a = a + a.T
    made, known = [0], []
    tasks, transfer = block_product.BlockProductDriver.tasks, TileJobs.transfer

    def counted(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        made[0] = 0
        for task in tasks(self, *args, **options):
            made[0] += 1
            yield task

    def noted(self: Any, *args: Any) -> Any:
        known.append(made[0])
        return transfer(self, *args)

    monkeypatch.setattr(block_product.BlockProductDriver, "tasks", counted)
    monkeypatch.setattr(TileJobs, "transfer", noted)
    governor().set_device_memory(1 << 30, 1 << 30)
    try:
        limits = operation_limits("256MB", "128MB")
        with (
            limits.scope("a test") as scope,
            StreamedProduct(
                FakeGpu(),
                Pinned(a),
                a.dtype,
                width,
                mirror="symmetric",
                limits=limits.less(0, limits.device - (1 << 20)),
                scope=scope,
            ) as product,
        ):
            assert product.plan.resident < 40, "no tile has to come and go"
            for _ in range(4):
                known.clear()
                x = rng.standard_normal((n, width))
                np.testing.assert_allclose(product(x), a @ x, atol=1e-10)
                assert made[0] > 200
                assert known[0] <= 8
    finally:
        governor().set_device_memory(0, 0)
