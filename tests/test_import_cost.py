"""``import pycauset`` brings NumPy and the standard library, and nothing that takes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"cupy", "dask", "h5py", "numcodecs", "psutil", "pydantic", "rich", "scipy", "typer", "zarr"}


def _loaded(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import pycauset",
        "import pycauset.config, pycauset.errors, pycauset.units, pycauset.tiling",
        "import pycauset.properties, pycauset.propagation",
        "import pycauset.storage",
        "import pycauset.governor",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert _loaded(code) & HEAVY == set()


def test_the_package_adds_only_itself_and_the_standard_library_to_numpy() -> None:
    added = _loaded("import pycauset") - _loaded("import numpy")
    assert "pycauset" in added
    assert {name for name in added if name not in sys.stdlib_module_names} == {"pycauset"}
