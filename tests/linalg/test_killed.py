"""``kill -9`` at random moments of factorisations from disk to disk, in place and not: all go on, to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 50


def test_fifty_kills(tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(1 << 30))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path), str(TRIALS), str(seed)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS
    wrong = [trial for trial in trials if trial["status"] != 0 or not trial["same"] or trial["left"]]
    assert not wrong, f"seed {seed}: {wrong} {done.stderr}"
    assert sum(trial["killed"] for trial in trials) >= TRIALS // 2
    assert sum(trial["reused"] > 0 for trial in trials) >= TRIALS // 10, "no kill fell into the work itself"
