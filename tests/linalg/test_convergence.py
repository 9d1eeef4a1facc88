"""What iterations tell while they run, and the command that draws the guide's plot."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycauset.linalg import eigs, eigsh, randomized_svd, svds

ROOT = Path(__file__).resolve().parents[2]
CALLS = [lambda a, **o: eigsh(a, 3, block_size=4, **o), lambda a, **o: eigs(a, 3, **o), lambda a, **o: svds(a, 3, **o)]


def matrix(n: int = 150) -> np.ndarray:
    x = np.random.default_rng().standard_normal((n, 2 * n))
    return x @ x.T / n


@pytest.mark.parametrize("call", CALLS)
def test_a_bar_shows_passes_converged_pairs_and_the_residual(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    call(matrix(), progress=True)
    shown = " ".join(screen.getvalue().split())
    for words in (" passes of ", "3 of 3 converged, residual ", "100%"):
        assert words in shown


@pytest.mark.parametrize("call", [*CALLS, lambda a, **o: randomized_svd(a, 3, **o)])
@pytest.mark.parametrize("progress", [None, False])
def test_quiet_where_there_is_no_terminal(call: Any, progress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    call(matrix(), progress=progress)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("call", CALLS)
def test_a_callable_gets_converged_pairs(call: Any) -> None:
    seen: list[tuple[float, float]] = []
    call(matrix(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert {total for _, total in seen} == {3}
    assert all(0 <= done <= 3 for done, _ in seen)


def test_a_callable_gets_the_passes_of_a_randomized_svd() -> None:
    seen: list[tuple[float, float]] = []
    randomized_svd(matrix(), 3, power_iterations=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_the_plot_of_the_guide_is_drawn_by_its_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    guide = (ROOT / "docs" / "guides" / "Eigenvalues out of core.md").read_text(encoding="utf-8")
    assert "python docs/images/convergence.py" in guide
    target = tmp_path / "plot.svg"
    command = [sys.executable, str(ROOT / "docs" / "images" / "convergence.py"), "--order", "200", "--output", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "block of 4" in done.stdout
    text = target.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert "passes over the matrix" in text
    committed = (ROOT / "docs" / "images" / "convergence.svg").read_text(encoding="utf-8")
    assert committed.count("block of") == text.count("block of") >= 4
