"""What iterations tell while they run, and the command that draws the guide's plot."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import progress
from pycauset.drivers import block_product
from pycauset.linalg import eigs, eigsh, randomized_svd, svds
from pycauset.storage import create_store
from pycauset.tiling import Rect

ROOT = Path(__file__).resolve().parents[2]
CALLS = [lambda a, **o: eigsh(a, 3, block_size=4, **o), lambda a, **o: eigs(a, 3, **o), lambda a, **o: svds(a, 3, **o)]


def matrix(n: int = 150) -> np.ndarray:
    x = np.random.default_rng().standard_normal((n, 2 * n))
    return x @ x.T / n


def stored(folder: Path) -> pycauset.Matrix:
    """Such a matrix on disk, in more chunks than the streamer takes up at once."""
    a = matrix()
    store = create_store(folder / "a.zarr", a.shape, a.dtype, chunks=(15, 15))
    store.write(Rect(0, len(a), 0, len(a)), a)
    store.commit()
    return pycauset.open(folder / "a.zarr")


class Screen(io.StringIO):
    """A terminal: every state of a bar is drawn on it, not only the last."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("call", CALLS)
def test_a_bar_shows_passes_converged_pairs_and_the_residual(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    call(matrix(), progress=True)
    shown = " ".join(screen.getvalue().split())
    for words in (" passes of ", "3 of 3 converged, residual ", "100%"):
        assert words in shown


@pytest.mark.parametrize("options", [{}, {"M": np.diag(np.full(150, 2.0))}], ids=["", "with M"])
def test_a_bar_moves_within_a_pass_over_a_matrix_on_disk(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_REDRAW", 0.0)
    monkeypatch.setattr(block_product, "_SMALLEST", 1)  # a tile for each chunk
    eigsh(stored(tmp_path), 3, block_size=4, progress=True, **options)
    shares = [int(found) for found in re.findall(r"the next at +(\d+)%", screen.getvalue())]
    assert {share for share in shares if 0 < share < 100}
    assert max(shares) <= 100


def test_a_callable_gets_parts_of_the_passes_of_a_randomized_svd_over_a_matrix_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    seen: list[float] = []
    randomized_svd(stored(tmp_path), 3, power_iterations=1, progress=lambda done, total: seen.append(done))
    assert seen == sorted(seen)
    assert {1.0, 2.0, 3.0} < set(seen)
    assert {int(done) for done in seen if done % 1} == {0, 1, 2}, "every pass tells"


@pytest.mark.parametrize("call", [*CALLS, lambda a, **o: randomized_svd(a, 3, **o)])
@pytest.mark.parametrize("progress", [None, False])
def test_quiet_where_there_is_no_terminal(call: Any, progress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    call(matrix(), progress=progress)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_callable_gets_converged_pairs(call: Any, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)  # a tile for each chunk
    seen: list[tuple[float, float]] = []
    a = stored(tmp_path) if on_disk else matrix()
    *_, stats = call(a, progress=lambda done, total: seen.append((done, total)), return_stats=True)
    assert len(seen) <= stats.passes + 2, "once for each pass"
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
