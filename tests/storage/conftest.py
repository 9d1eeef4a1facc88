"""Fixtures of the storage tests."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zarr"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()
