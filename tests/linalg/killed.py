"""Kill factorisations at random moments, take them up again, compare the bits: a process that has no threads, and forks.

``python killed.py FOLDER TRIALS SEED`` prints one line of JSON for each trial. OPENBLAS_NUM_THREADS=1 keeps this process free of
threads, so that its children may start their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401 - imported once, not in every child

import pycauset
from pycauset.devices.audit import load_profile
from pycauset.drivers import cholesky as _driver  # noqa: F401
from pycauset.hardware import fingerprint, load_machine
from pycauset.hardware.cache import write_profile
from pycauset.linalg import cholesky
from pycauset.solver import blocked as _blocked  # noqa: F401
from pycauset.solver import last_statistics
from pycauset.storage import commit, create_store, journal
from pycauset.storage.direct import crc32c
from pycauset.tiling import Rect

ROOT = Path(__file__).resolve().parents[2]
N, CHUNK, MEMORY = 140, 32, "600kB"
VARIANTS = ("left", "right", "triangle")


def factor(folder: Path, variant: str, in_place: bool) -> None:
    """What is killed; a whole run leaves how many tasks an earlier one had spared it."""
    place: dict[str, Any] = {"overwrite": True} if in_place else {"out": folder / "l.zarr"}
    cholesky(pycauset.open(folder / "a.zarr"), variant=variant, memory=MEMORY, progress=False, **place)
    statistics = last_statistics()
    (folder / "reused").write_text(str(statistics.reused if statistics else -1))


def forked(folder: Path, variant: str, in_place: bool, kill_after: float | None) -> tuple[int, float]:
    """Exit status (negative for a signal) and seconds of a child that factors."""
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            factor(folder, variant, in_place)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def is_done(folder: Path, target: str) -> bool:
    """Whether the last child was killed when its work was finished."""
    metadata = folder / target / "zarr.json"
    return not list(folder.glob("*.journal")) and metadata.is_file() and "is_lower_triangular" in metadata.read_text()


def checksum(path: Path) -> int:
    """Of all files of a matrix but its metadata."""
    crc = 0
    for chunk in sorted(p for p in (path / "c").rglob("*") if p.is_file()):
        crc = crc32c(np.fromfile(chunk, np.uint8), crc)
    return crc


def home(root: Path) -> Path:
    """A home folder with a profile that fits this machine with one BLAS thread, so that nothing is measured."""
    folder = root / "home"
    folder.mkdir(mode=0o700)
    profile = load_machine(ROOT / "profiles" / "no_gpu.json").profile
    disk = profile.disk.model_copy(update={"folder": str(folder)})
    profile = profile.model_copy(update={"fingerprint": fingerprint(), "disk": disk})
    assert write_profile(folder / "hardware_profile.json", profile) is None
    return folder


def main(root: Path, trials: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    commit.COMMIT_SECONDS = 0.0  # type: ignore[misc] # tiles this small would otherwise all be recorded at the end
    os.environ["PYCAUSET_HOME"] = str(home(root))
    load_profile()
    journal.versions()
    x = rng.standard_normal((N, N))
    a = x @ x.T + N * np.eye(N)
    source = root / "source.zarr"
    store = create_store(source, a.shape, a.dtype, chunks=(CHUNK, CHUNK), structure="lower")
    store.write(Rect(0, N, 0, N), a)
    store.commit()
    expected: dict[tuple[str, bool], tuple[int, float]] = {}
    for trial in range(trials):
        variant, in_place = VARIANTS[trial % 3], trial % 2 == 1
        target = "a.zarr" if in_place else "l.zarr"
        folder = root / str(trial)
        folder.mkdir()
        shutil.copytree(source, folder / "a.zarr")
        if (variant, in_place) not in expected:
            status, seconds = forked(folder, variant, in_place, None)
            assert status == 0
            expected[variant, in_place] = checksum(folder / target), seconds
            shutil.rmtree(folder)
            folder.mkdir()
            shutil.copytree(source, folder / "a.zarr")
        crc, seconds = expected[variant, in_place]
        killed = 0
        for _ in range(int(rng.integers(1, 4))):
            status, _ = forked(folder, variant, in_place, rng.uniform(0, seconds))
            killed += status == -signal.SIGKILL
            if is_done(folder, target):
                status = 0
                break
        if status != 0:
            status, _ = forked(folder, variant, in_place, None)
        told = (folder / "reused").read_text() if (folder / "reused").exists() else ""
        reused = int(told or -1)  # a child can be killed while it tells
        (folder / "reused").unlink(missing_ok=True)
        left = sorted({p.name for p in folder.iterdir()} - {"a.zarr", target})
        left += [p.name for p in (folder / target).rglob("*") if p.name.endswith((".pending", ".tmp")) or p.name.startswith(".")]
        same = status == 0 and checksum(folder / target) == crc
        line = {"trial": trial, "killed": killed, "status": status, "reused": reused, "same": same, "left": left}
        print(json.dumps(line), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
