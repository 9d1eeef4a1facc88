"""Interrupted work taken up in other circumstances: other libraries or limits are refused, other free memory changes nothing."""

from __future__ import annotations

import importlib.machinery
import json
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycauset import config, errors
from pycauset.hardware import load_machine, use_probe
from pycauset.hardware.arithmetic import cpu_arithmetic, gpu_arithmetic
from pycauset.linalg import cholesky, inv, solve
from pycauset.solver import blocked, circumstances, last_statistics
from pycauset.storage.journal import read_journal
from pycauset.storage.journalfile import format_record
from tests.linalg.cases import on_disk, spd
from tests.linalg.test_stages import Stop, names

N, MEMORY = 120, "400kB"
PROFILES = Path(__file__).resolve().parents[2] / "profiles"


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stand-in for threadpoolctl says of the one library that there is."""
    entry = {"user_api": "blas", "internal_api": "openblas", "prefix": "libopenblas", "filepath": "/x/scipy.libs/libopenblas.so"}
    told: dict[str, Any] = {**entry, "version": "0.3.1", "architecture": "Zen", "threading_layer": "pthreads", "num_threads": 2}
    module = types.ModuleType("threadpoolctl")
    module.__spec__ = importlib.machinery.ModuleSpec("threadpoolctl", None)
    monkeypatch.setattr(module, "threadpool_info", lambda: [told, {"user_api": "openmp", "num_threads": 7}], raising=False)
    monkeypatch.setitem(sys.modules, "threadpoolctl", module)
    return told


@pytest.mark.parametrize(("field", "value"), [("num_threads", 1), ("version", "0.3.2"), ("architecture", "Haswell")])
def test_another_blas_is_refused(tmp_path: Path, blas: dict[str, Any], field: str, value: Any) -> None:
    a = spd(N, "float64", np.random.default_rng())
    matrix, path = on_disk(a, tmp_path / "a.zarr"), tmp_path / "l.zarr"
    with pytest.raises(KeyboardInterrupt):
        cholesky(matrix, out=path, memory=MEMORY, progress=Stop(0, 0.8))
    old, blas[field] = blas[field], value
    key = "threads" if field == "num_threads" else field
    with pytest.raises(errors.JournalError, match=rf"libopenblas\.{key} was {old!r} and is {value!r}.*resume=\"restart\""):
        cholesky(matrix, out=path, memory=MEMORY)
    factor = cholesky(matrix, out=path, memory=MEMORY, resume="restart")
    assert np.allclose(factor, np.linalg.cholesky(a))
    assert names(tmp_path) == {"a.zarr", "l.zarr"}


def test_the_threads_of_every_blas_are_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what every installation has."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    project = tomllib.loads((PROFILES.parent / "pyproject.toml").read_text())["project"]
    assert any(re.match(r"threadpoolctl\b", dependency) for dependency in project["dependencies"])
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = cpu_arithmetic()
    assert found["blas"]
    assert all(entry["threads"] == 1 and entry["version"] for entry in found["blas"].values())
    assert "OPENBLAS_NUM_THREADS=3" in found["settings"]
    assert int(found["cores"]) > 0


@pytest.mark.parametrize(("field", "value"), [("driver", 12080), ("runtime", 12090), ("name", "NVIDIA Other")])
def test_another_gpu_or_its_software_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    """Work that was begun on a GPU, as the header tells, of a machine that is only described."""
    matrix, path = on_disk(spd(N, "float64", np.random.default_rng()), tmp_path / "a.zarr"), tmp_path / "l.zarr"
    described = json.loads((PROFILES / "h200.json").read_text())
    found = [entry for entry in described.values() if isinstance(entry, dict) and isinstance(entry.get("gpu"), dict)]
    answers = next(entry["gpu"] for entry in found if field in entry["gpu"])
    with use_probe(load_machine(PROFILES / "h200.json")), config.settings(backend="cpu"):
        with pytest.raises(KeyboardInterrupt):
            cholesky(matrix, out=path, memory=MEMORY, progress=Stop(0, 0.8))
        header, records = read_journal(tmp_path / "l.zarr.journal")
        header = {**header, "plan": {**header["plan"], "device": "gpu"}, "machine": gpu_arithmetic()}
        header["plan"]["plan"] = {**header["plan"]["plan"], "unified": False}
        (tmp_path / "l.zarr.journal").write_bytes(b"".join(map(format_record, [header, *records])))
    answers[field] = value
    (tmp_path / "other.json").write_text(json.dumps(described))
    word = {"driver": "driver", "runtime": "cuda", "name": "gpu"}[field]
    with use_probe(load_machine(tmp_path / "other.json")):
        with pytest.raises(errors.JournalError, match=rf"was computing on a GPU, and machine\.{word} was .* and is '{value}"):
            cholesky(matrix, out=path, memory=MEMORY)
        with config.settings(backend="cpu"):
            cholesky(matrix, out=path, memory=MEMORY, resume="restart")


@pytest.mark.parametrize("call", ["solve", "inv"])
def test_later_steps_are_planned_as_the_first_call_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever is free when the call is made again."""
    rng = np.random.default_rng()
    matrix = on_disk(spd(N, "float64", rng), tmp_path / "a.zarr")
    b = rng.standard_normal((N, N))

    def work(**options: Any) -> Any:
        options |= {"memory": "600kB"}  # only so that chunks are small
        found = solve(matrix, b, assume_a="pos", **options) if call == "solve" else inv(matrix, assume_a="pos", **options)
        return np.asarray(found), blocked.last_plan()

    monkeypatch.setattr(circumstances, "_steady", lambda free: 180_000)
    expected, plan = work(out=tmp_path / "whole.zarr")
    with pytest.raises(KeyboardInterrupt):
        work(out=tmp_path / "x.zarr", progress=Stop(0, 0.8))
    monkeypatch.setattr(circumstances, "_steady", lambda free: 40_000_000)
    assert work(out=tmp_path / "free.zarr")[1] != plan, "the plan does not depend on what is free"
    again, followed = work(out=tmp_path / "x.zarr")
    assert followed == plan
    assert np.array_equal(again, expected)


@pytest.mark.parametrize("call", ["cholesky", "solve"])
def test_less_memory_than_the_plan_on_record_needs(tmp_path: Path, call: str) -> None:
    rng = np.random.default_rng()
    matrix, path = on_disk(spd(N, "float64", rng), tmp_path / "a.zarr"), tmp_path / "x.zarr"
    b = rng.standard_normal((N, N))

    def work(memory: Any, **options: Any) -> Any:
        if call == "cholesky":
            return cholesky(matrix, memory=memory, out=path, **options)
        return solve(matrix, b, assume_a="pos", memory=memory, out=path, **options)

    with pytest.raises(KeyboardInterrupt):
        work(MEMORY, progress=Stop(0, 0.8))
    with pytest.raises(errors.MemoryLimitError, match=r'plan on record.*or else start over with resume="restart"') as caught:
        work(100_000)
    told = re.search(r"memory=100000 is too little; give memory=(\d+) or more", str(caught.value))
    assert told is not None
    assert 100_000 < int(told[1]) <= 400_000
    if call == "cholesky":  # of several steps, later ones may need more
        with pytest.raises(errors.MemoryLimitError):
            work(int(told[1]) - 1000)
        assert np.allclose(work(int(told[1])), np.linalg.cholesky(np.asarray(matrix)))
    else:
        work(MEMORY)
    assert "x.zarr.journal" not in names(tmp_path)


def test_tasks_of_all_steps_are_counted(tmp_path: Path) -> None:
    matrix = on_disk(spd(N, "float64", np.random.default_rng()), tmp_path / "a.zarr")
    with pytest.raises(KeyboardInterrupt):
        inv(matrix, assume_a="pos", memory=MEMORY, out=tmp_path / "x.zarr", progress=Stop(2, 0.8))
    tasks = json.loads((tmp_path / "x.zarr.stages" / "request.json").read_text())["tasks"]
    assert set(tasks) == {"factor", "inverse"}
    inv(matrix, assume_a="pos", memory=MEMORY, out=tmp_path / "x.zarr")
    statistics = last_statistics()
    assert statistics is not None
    assert statistics.reused >= tasks["inverse"] > tasks["factor"] > 0, "the factor is a step of the inverse"
