"""Scratch stores live as long as somebody holds them, and never longer than the process."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pycauset import config
from pycauset.errors import StoreError, StoreFullError
from pycauset.storage import ZarrStore, scratch_folder, scratch_store
from pycauset.storage import scratch as scratch_module
from pycauset.tiling import Rect


def filled() -> ZarrStore:
    store = scratch_store((50, 50), "float64", chunks=(20, 20))
    store.write(Rect(0, 50, 0, 50), np.ones((50, 50)))
    return store


def test_gone_with_the_last_reference(tmp_path: Path) -> None:
    with config.settings(scratch=tmp_path):
        finished, unfinished = filled(), filled()
        finished.commit(properties={"is_symmetric": True})
        folder = scratch_folder()
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        alias = finished
        del finished
        gc.collect()
        out = np.full((50, 50), np.nan)
        alias.read(Rect(0, 50, 0, 50), out)
        assert (out == 1).all()
        assert len([p for p in folder.iterdir() if p.is_dir()]) == 2
        del alias, unfinished
        gc.collect()
        assert [p.name for p in folder.iterdir()] == ["lock"]


SCRIPT = """
import os, sys, numpy as np
from pycauset.storage import scratch_store, scratch_folder
from pycauset.tiling import Rect
s = scratch_store((10, 10), "float64")
s.write(Rect(0, 10, 0, 10), np.ones((10, 10)))
s.commit()
print(scratch_folder(), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "fork":
    if os.fork() == 0:
        sys.exit(0)  # the child's exit must not remove what its parent still uses
    os.wait()
    print(s.path.exists(), flush=True)
"""


def run(how: str, folder: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYCAUSET_SCRATCH": str(folder)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout, done.stderr
    return done.stdout.split()


def test_gone_with_the_process_and_swept_after_a_kill(tmp_path: Path) -> None:
    assert not Path(run("exit", tmp_path)[0]).exists()
    (killed,) = run("kill", tmp_path)
    assert Path(killed).exists()
    other = tmp_path / "pycauset-scratch-notes"
    other.write_text("a file is not ours")
    run("exit", tmp_path)
    assert not Path(killed).exists()
    assert other.exists()


def test_a_forked_child_does_not_remove_its_parents_stores(tmp_path: Path) -> None:
    folder, existed = run("fork", tmp_path)
    assert existed == "True"
    assert not Path(folder).exists()


def test_a_living_process_is_not_swept(tmp_path: Path) -> None:
    with config.settings(scratch=tmp_path):
        store = filled()
        run("exit", tmp_path)
        assert store.path is not None
        store.commit()
        assert store.path.exists()


def test_links_are_not_followed_when_sweeping(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "lock").touch()
    (tmp_path / "pycauset-scratch-1-evil").symlink_to(victim)
    scratch_module._sweep(tmp_path)
    assert (victim / "lock").exists()


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with config.settings(scratch=tmp_path / "file" / "below"), pytest.raises(StoreError, match="setting 'scratch'"):
        scratch_store((2, 2), "float64")


def test_too_large_a_result(tmp_path: Path) -> None:
    with config.settings(scratch=tmp_path), pytest.raises(StoreFullError, match="free"):
        scratch_store((10**6, 10**6), "float64")
    folders = list(tmp_path.iterdir())
    assert [p.name for p in folders[0].iterdir()] == ["lock"]
