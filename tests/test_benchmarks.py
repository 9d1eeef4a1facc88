"""The benchmarks run at smoke size, report what they must, and their own arithmetic is right. No test looks at a time."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("disk", "report"))
WITHOUT_BARS = {"two_blas"}
GPU_SCRIPTS = [name for name in SCRIPTS if name.startswith("gpu_")]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_report", FOLDER / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=180, cwd=ROOT, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke(name: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.txt"
    done = run(f"benchmarks/{name}.py", "--smoke", "--output", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.read_text(encoding="utf-8") == done.stdout
    for heading in ("date", "command", "CPU", "RAM", "versions"):
        assert re.search(rf"^{heading} +\S", done.stdout, re.MULTILINE), heading
    assert f"python benchmarks/{name}.py --smoke --output report.txt" in done.stdout
    if name in GPU_SCRIPTS and "not run: " in done.stdout:
        return
    bars = re.findall(r"bar [≤≥] [\d.]+.*(PASS|FAIL)", done.stdout)
    assert bars or name in WITHOUT_BARS
    for error in re.findall(r"^largest error.* (\S+) of \|A\|\|B\|$", done.stdout, re.MULTILINE):
        assert float(error) < 1e-14


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_listed(name: str) -> None:
    assert f"benchmarks/{name}.py" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_gpu_run_wants_a_folder() -> None:
    done = subprocess.run(["bash", str(FOLDER / "run_gpu.sh")], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "OUTPUT_FOLDER" in done.stderr
    listed = (FOLDER / "run_gpu.sh").read_text(encoding="utf-8")
    assert all(f"bench {name} " in listed for name in GPU_SCRIPTS)


def test_stress_script(tmp_path: Path) -> None:
    """The script of the 100 GB run at a size that takes seconds: machine, limit, table, and nothing left."""
    done = stress(tmp_path, BAR="1e9", PYTHON=sys.executable)
    assert done.returncode == stressed(done, 0), done.stdout + done.stderr
    for heading in ("date", "command", "CPU", "RAM", "limit of the process", "runs", "time", "peak memory", "check of tiles"):
        assert re.search(rf"^{heading} +\S", done.stdout, re.MULTILINE), heading
    assert re.search(
        r"^command +SIZE=4MB RAM=2GB MEMORY=128MB GPU_MEMORY=8GB benchmarks/stress_100gb\.sh", done.stdout, re.MULTILINE
    )
    assert "707 × 707" in done.stdout
    assert "seed 3" in done.stdout
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("ratio", "status", "held", "expected", "said"),
    [
        ("1.50", 0, True, 0, "1.50   bar ≤ 1.5   PASS"),
        ("1.51", 0, True, 1, "1.51   bar ≤ 1.5   FAIL"),
        ("1.20", 1, False, 1, "PASS"),
        ("", 0, False, 3, "not measured"),
    ],
)
def test_stress_script_tells_what_it_was_worth(
    tmp_path: Path, ratio: str, status: int, held: bool, expected: int, said: str
) -> None:
    """Of a run that is made up: a missed bar, and a process that nothing held to its limit, are exit statuses."""
    line = f"planned disk bytes  39 s at that speed; the time is {ratio} times it" if ratio else "reused  3 of 4 tasks"
    commands = {
        "python": f'case "$*" in *stress*--op*) echo "{line}"; exit {status};; esac\nexec {sys.executable} "$@"',
        "systemd-run": "exit 1",
        "mkdir": 'case "$1" in /sys/*) exit 1;; esac\nexec /bin/mkdir "$@"',
    }
    for name, script in commands.items():
        if name != "mkdir" or not held:
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
    done = stress(tmp_path, PYTHON=str(tmp_path / "python"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == (stressed(done, expected) if held else expected), done.stdout + done.stderr
    assert ("NOT UNDER A LIMIT" in done.stdout.splitlines()[-1]) or held
    assert re.search(rf"^time over planned disk bytes +.*{re.escape(said)}", done.stdout, re.MULTILINE)


def stress(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    small = {"SIZE": "4MB", "MEMORY": "128MB", "RAM": "2GB", "FOLDER": str(folder / "made"), **environment}
    return subprocess.run(
        ["bash", str(FOLDER / "stress_100gb.sh"), "--no-progress", "--backend", "cpu", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **small},
        check=False,
    )


def stressed(done: subprocess.CompletedProcess[str], status: int) -> int:
    """The exit status that is due: 3 where all passed, but no limit held; the last line says so."""
    limited = not re.search(r"^limit of the process +none", done.stdout, re.MULTILINE)
    assert ("NOT UNDER A LIMIT" in done.stdout.splitlines()[-1]) is not limited
    return status if limited or status else 3


def options(tmp_path: Path, *, smoke: bool) -> argparse.Namespace:
    return argparse.Namespace(smoke=smoke, output=tmp_path / "out.txt")


@pytest.mark.parametrize(("value", "at_least", "status"), [(0.94, True, 1), (0.95, True, 0), (0.96, False, 1), (0.95, False, 0)])
def test_a_missed_bar_is_the_exit_status(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, at_least: bool, status: int
) -> None:
    made = report.Report("a test", options(tmp_path, smoke=False))
    assert made.bar("ratio", value, 0.95, at_least=at_least) is (status == 0)
    assert made.finish() == status
    assert ("FAIL" if status else "PASS") in capsys.readouterr().out


def test_smoke_size_misses_only_exact_bars(report: ModuleType, tmp_path: Path) -> None:
    made = report.Report("a test", options(tmp_path, smoke=True))
    made.bar("speed", 0.1, 0.95, at_least=True)
    assert made.finish() == 0
    made.bar("mismatches", 1, 0, at_least=False, exact=True)
    assert made.finish() == 1


def test_samples_show_median_and_spread(report: ModuleType) -> None:
    sample = report.Sample((3.0, 1.0, 2.0))
    assert sample.median == 2.0
    assert str(sample) == "2 s (median of 3; 1 to 3)"
    assert str(report.Sample((2e-6,))) == "2 µs (median of 1; 2 to 2)"


@pytest.mark.parametrize(("shape", "chunks"), [((70, 53), (32, 16)), ((64, 64), (64, 64)), ((5, 101), None)])
def test_operands_can_be_computed_again(
    report: ModuleType, tmp_path: Path, shape: tuple[int, int], chunks: tuple[int, int] | None
) -> None:
    report.write_operand(tmp_path / "a.zarr", *shape, seed=11, chunks=chunks, threads=2)
    stored = report.load(tmp_path / "a.zarr")
    again = report.operand_rows(range(shape[0]), shape[1], seed=11, dtype="float64", chunks=chunks or shape)
    np.testing.assert_array_equal(stored, again)
    assert len(np.unique(stored)) > stored.size // 2


def test_a_wrong_product_is_seen(report: ModuleType) -> None:
    rng = np.random.default_rng()
    a, b = rng.random((6, 40)), rng.random((40, 9))
    c = a @ b
    assert report.sampled_error(c, a, b) < 1e-14
    c[3, 4] *= 1 + 1e-9
    assert report.sampled_error(c, a, b) > 1e-10
    c[3, 4] = np.nan
    assert not report.sampled_error(c, a, b) < 1


def test_private_folders_stay_private(report: ModuleType) -> None:
    assert report.hide_folder("/some/where/report.txt") == "report.txt"
    assert report.hide_folder("--smoke") == "--smoke"
