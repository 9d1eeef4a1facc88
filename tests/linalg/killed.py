"""Kill operations in the middle of their work, take them up again, compare the bits: a process that has no threads, and forks.

``python killed.py FOLDER TRIALS SEED KIND`` prints one line of JSON for each trial, of "factorisations" or operations of several
"steps" each. A trial is a child that was killed after its journal had a header and before its end: the
moment is drawn from the lengths that the journals of a whole run went through, and a random time later. A child that was faster
than the kill is no trial; its work is made again. OPENBLAS_NUM_THREADS=1 keeps
this process free of threads, so that its children may start their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401 - imported once, not in every child

import pycauset
from pycauset.devices.audit import load_profile
from pycauset.hardware import fingerprint, load_machine
from pycauset.hardware.cache import write_profile
from pycauset.linalg import cholesky, inv, solve
from pycauset.solver import last_statistics
from pycauset.storage import commit, create_store
from pycauset.storage.direct import crc32c
from pycauset.storage.journal import read_journal
from pycauset.tiling import Rect

ROOT = Path(__file__).resolve().parents[2]
N, CHUNK, MEMORY = 120, 24, "400kB"
Work = Callable[[Path], object]
Moment = tuple[str, int, int]
"""A journal, its length with a header, and its last length."""


def kinds() -> dict[str, list[tuple[str, str, Work]]]:
    """Kind of test: a list of names, what they write, and what they do; the matrices are in ``a.zarr`` and ``b.zarr``."""
    options: dict[str, Any] = {"memory": MEMORY, "progress": False}

    def matrix(folder: Path, name: str = "a") -> pycauset.Matrix:
        return pycauset.open(folder / f"{name}.zarr")

    def factored(variant: str) -> Work:
        return lambda folder: cholesky(matrix(folder), variant=variant, out=folder / "l.zarr", **options)

    def in_place(variant: str) -> Work:
        return lambda folder: cholesky(matrix(folder), variant=variant, overwrite=True, **options)

    def solved(folder: Path) -> object:
        return solve(matrix(folder), folder / "b.zarr", assume_a="pos", out=folder / "x.zarr", **options)

    def solved_in_place(folder: Path) -> object:
        return solve(matrix(folder), matrix(folder, "b"), assume_a="pos", overwrite_b=True, **options)

    def inverted(folder: Path) -> object:
        return inv(matrix(folder), assume_a="pos", out=folder / "x.zarr", **options)

    factorisations = []
    for trial in range(6):
        variant = ("left", "right", "triangle")[trial % 3]
        place = ("a.zarr", in_place(variant)) if trial % 2 else ("l.zarr", factored(variant))
        factorisations.append((f"{variant} to {place[0]}", *place))
    steps = [("solve", "x.zarr", solved), ("inv", "x.zarr", inverted), ("solve in place", "b.zarr", solved_in_place)]
    return {"factorisations": factorisations, "steps": steps}


def started(folder: Path, work: Work) -> int:
    """A child at work; one that comes to its end leaves how many tasks earlier runs had spared it."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(folder)
        statistics = last_statistics()
        (folder / "reused").write_text(str(statistics.reused if statistics else 0))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int, *, wait: bool) -> int | None:
    """The exit status of a child, negative for a signal; None if it is still at work."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def whole(folder: Path, work: Work) -> list[Moment]:
    """Run to the end; the journals that this took, each with the length at which its header was whole, and the last one."""
    pid, seen = started(folder, work), dict[str, tuple[int, int]]()
    while (status := ended(pid, wait=False)) is None:
        for path in (*folder.glob("*.journal"), *folder.glob("*.stages/*.journal")):
            size = length(path)
            if size:
                seen[str(path.relative_to(folder))] = seen.get(str(path.relative_to(folder)), (size, 0))[0], size
        time.sleep(0.0005)
    assert status == 0
    return [(name, *sizes) for name, sizes in seen.items()]


def length(path: Path) -> int:
    """Of a journal, 0 without one."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def killed(folder: Path, work: Work, moments: list[Moment], rng: np.random.Generator) -> int:
    """Kill a child when one of its journals has grown to a random length, or a little later; its exit status."""
    sizes = np.array([last - first + 1 for _, first, last in moments])
    name, first, last = moments[rng.choice(len(moments), p=sizes / sizes.sum())]
    size, later = rng.integers(first, last, endpoint=True), rng.uniform(0, 2e-3)
    pid = started(folder, work)
    while (status := ended(pid, wait=False)) is None:
        if length(folder / name) >= size:
            time.sleep(later)
            os.kill(pid, signal.SIGKILL)
            status = ended(pid, wait=True)
            break
        time.sleep(0.0005)
    assert status in (0, -signal.SIGKILL), status
    return status


def recorded(folder: Path) -> int:
    """Tiles that a run can go on with, by its journals; 0 where only the end of the work was left to do."""
    records = [
        record for path in (*folder.glob("*.journal"), *folder.glob("*.stages/*.journal")) for record in read_journal(path)[1]
    ]
    return (
        0 if any(record.keys() & {"complete", "finished"} for record in records) else sum("tile" in record for record in records)
    )


def is_done(folder: Path, target: str) -> bool:
    """Whether the last child was killed when its work was finished."""
    metadata = folder / target / "zarr.json"
    if list(folder.glob("*.journal")) or list(folder.glob("*.stages")) or not metadata.is_file():
        return False
    text = metadata.read_text()
    return target not in ("a.zarr", "b.zarr") or '"generation": 1' not in text


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
    x = rng.standard_normal((N, N))
    source, folder = root / "source", root / "trial"
    source.mkdir()
    matrices = [("a", x @ x.T + N * np.eye(N), "lower"), ("b", x[:, : N // 2], "full")]
    for name, array, structure in matrices[: 1 if kind == "factorisations" else 2]:
        store = create_store(source / f"{name}.zarr", array.shape, array.dtype, chunks=(CHUNK, CHUNK), structure=structure)
        store.write(Rect(0, array.shape[0], 0, array.shape[1]), array)
        store.commit()
    cases = kinds()[kind]
    expected: dict[str, tuple[int, list[Moment]]] = {}

    def anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)

    anew()
    cases[0][2](folder)  # imports, so that no child has to
    assert threading.active_count() == 1
    for trial in range(trials):
        name, target, work = cases[trial % len(cases)]
        if name not in expected:
            anew()
            moments = whole(folder, work)
            expected[name] = checksum(folder / target), moments
        crc, moments = expected[name]
        missed = -1
        while True:
            missed += 1
            assert missed < 50
            anew()
            if killed(folder, work, moments, rng) and not is_done(folder, target):
                break
        kills = 1
        if rng.random() < 0.25:  # two kills in a row
            kills += killed(folder, work, moments, rng) != 0
        status, tiles = 0, recorded(folder)
        if not is_done(folder, target):
            status = ended(started(folder, work), wait=True)
        reused = int((folder / "reused").read_text() or 0) if (folder / "reused").exists() else 0
        (folder / "reused").unlink(missing_ok=True)
        left = sorted({p.name for p in folder.iterdir()} - {"a.zarr", "b.zarr", target})
        left += [p.name for p in (folder / target).rglob("*") if p.name.endswith((".pending", ".tmp")) or p.name.startswith(".")]
        same = status == 0 and checksum(folder / target) == crc
        line = {"name": name, "kills": kills, "missed": missed, "status": status, "recorded": tiles, "reused": reused}
        print(json.dumps({**line, "same": same, "left": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
