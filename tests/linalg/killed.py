"""Kill operations at random moments, take them up again, compare the bits: a process that has no threads, and forks.

``python killed.py FOLDER TRIALS SEED KIND`` prints one line of JSON for each trial, of "factorisations" or operations of several
"steps" each. OPENBLAS_NUM_THREADS=1 keeps this process free of threads, so that its children may start their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401 - imported once, not in every child

import pycauset
from pycauset.devices.audit import load_profile
from pycauset.drivers import cholesky as _driver  # noqa: F401
from pycauset.drivers import triangular as _triangular  # noqa: F401
from pycauset.hardware import fingerprint, load_machine
from pycauset.hardware.cache import write_profile
from pycauset.linalg import cholesky, inv, solve
from pycauset.solver import blocked as _blocked  # noqa: F401
from pycauset.solver import run
from pycauset.storage import commit, create_store, journal
from pycauset.storage.direct import crc32c
from pycauset.tiling import Rect

ROOT = Path(__file__).resolve().parents[2]
N, CHUNK, MEMORY = 140, 32, "600kB"
Work = Callable[[Path], object]


def kinds() -> dict[str, list[tuple[str, str, Work]]]:
    """Kind of test: a list of names, what they write, and what they do; the matrices are in ``a.zarr`` and ``b.zarr``."""
    options: dict[str, Any] = {"memory": MEMORY, "progress": False}

    def a(folder: Path) -> pycauset.Matrix:
        return pycauset.open(folder / "a.zarr")

    def factored(variant: str) -> Work:
        return lambda folder: cholesky(a(folder), variant=variant, out=folder / "l.zarr", **options)

    def in_place(variant: str) -> Work:
        return lambda folder: cholesky(a(folder), variant=variant, overwrite=True, **options)

    def solved(folder: Path) -> object:
        return solve(a(folder), folder / "b.zarr", assume_a="pos", out=folder / "x.zarr", **options)

    def inverted(folder: Path) -> object:
        return inv(a(folder), assume_a="pos", out=folder / "x.zarr", **options)

    factorisations = []
    for trial in range(6):
        variant = ("left", "right", "triangle")[trial % 3]
        place = ("a.zarr", in_place(variant)) if trial % 2 else ("l.zarr", factored(variant))
        factorisations.append((f"{variant} to {place[0]}", *place))
    return {"factorisations": factorisations, "steps": [("solve", "x.zarr", solved), ("inv", "x.zarr", inverted)]}


def forked(folder: Path, work: Work, kill_after: float | None) -> tuple[int, float]:
    """Exit status (negative for a signal) and seconds of a child; one that ends leaves how many tasks and steps it did.

    The tasks are those that an earlier run had spared it.
    """
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        status, reused = 1, []
        record = run.record_statistics

        def recorded(statistics: Any) -> None:
            record(statistics)
            reused.append(statistics.reused if statistics else 0)

        run.record_statistics = recorded
        try:
            work(folder)
            (folder / "reused").write_text(f"{sum(reused)} {len(reused)}")
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
    if list(folder.glob("*.journal")) or not metadata.is_file():
        return False
    return target != "a.zarr" or "is_lower_triangular" in metadata.read_text()


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


def main(root: Path, trials: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    commit.COMMIT_SECONDS = 0.0  # type: ignore[misc] # tiles this small would otherwise all be recorded at the end
    os.environ["PYCAUSET_HOME"] = str(home(root))
    load_profile()
    journal.versions()
    x = rng.standard_normal((N, N))
    source = root / "source"
    source.mkdir()
    for name, array, structure in (("a", x @ x.T + N * np.eye(N), "lower"), ("b", x[:, : N // 2], "full")):
        store = create_store(source / f"{name}.zarr", array.shape, array.dtype, chunks=(CHUNK, CHUNK), structure=structure)
        store.write(Rect(0, array.shape[0], 0, array.shape[1]), array)
        store.commit()
    cases = kinds()[kind]
    expected: dict[str, tuple[int, float]] = {}
    for trial in range(trials):
        name, target, work = cases[trial % len(cases)]
        folder = root / str(trial)
        shutil.copytree(source, folder)
        if name not in expected:
            status, seconds = forked(folder, work, None)
            assert status == 0
            expected[name] = checksum(folder / target), seconds
            shutil.rmtree(folder)
            shutil.copytree(source, folder)
        crc, seconds = expected[name]
        killed = 0
        for _ in range(int(rng.integers(1, 4))):
            status, _ = forked(folder, work, rng.uniform(0, seconds))
            killed += status == -signal.SIGKILL
            if is_done(folder, target):
                status = 0
                break
        if status != 0:
            status, _ = forked(folder, work, None)
        told = (folder / "reused").read_text() if (folder / "reused").exists() else ""
        reused, steps = map(int, told.split() or (-1, -1))  # a child can be killed while it tells
        (folder / "reused").unlink(missing_ok=True)
        left = sorted({p.name for p in folder.iterdir()} - {"a.zarr", "b.zarr", target})
        left += [p.name for p in (folder / target).rglob("*") if p.name.endswith((".pending", ".tmp")) or p.name.startswith(".")]
        same = status == 0 and checksum(folder / target) == crc
        line = {"name": name, "killed": killed, "status": status, "reused": reused, "steps": steps, "same": same, "left": left}
        print(json.dumps(line), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
