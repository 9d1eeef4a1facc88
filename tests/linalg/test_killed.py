"""``kill -9`` in the middle of work from disk to disk: all go on, to the same bits, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def trials(folder: Path, number: int, kind: str) -> list[dict[str, Any]]:
    """What came of so many operations that were killed between their journal's header and their end, none of them wrong."""
    seed = int(np.random.default_rng().integers(1 << 30))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), str(number), str(seed), kind],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [trial for trial in found if trial["status"] != 0 or not trial["same"] or trial["left"]]
    assert not wrong, f"seed {seed}: {wrong} {done.stderr}"
    assert len(found) == number
    wasted = [trial for trial in found if trial["recorded"] and not trial["reused"]]
    assert not wasted, f"seed {seed}: {wasted}"
    return found


def test_fifty_kills_of_factorisations(tmp_path: Path) -> None:
    found = trials(tmp_path, 50, "factorisations")
    names = {f"{variant} to {place}.zarr" for variant in ("left", "right", "triangle") for place in "al"}
    assert {trial["name"] for trial in found} == names, "each variant out of place and in place"
    assert sum(trial["reused"] > 0 for trial in found) >= 25, "kills come too early for anything to be on record"


def test_kills_of_systems_and_inverses(tmp_path: Path) -> None:
    """A factorisation, and what follows it."""
    found = trials(tmp_path, 12, "steps")
    assert sum(trial["reused"] > 0 for trial in found) >= 6
