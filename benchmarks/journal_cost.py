"""What a journal costs: the same Cholesky factorisation from disk to disk with and without one, alternating in one run.

With a journal every tile is synced, recorded and renamed, so that the factorisation survives a kill or a power failure at any
moment; without one it writes its chunks and commits. The bar holds for the median over pairs of runs, one after the other. What
the journal does is counted beside it, for it does not depend on what else the machine is at: syncs, renames, bytes that get a
checksum, and the processor time of the threads that do it. The time that it takes by the clock mostly overlaps with the work.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, Sample, add_folder, drop_cache, parser, warm_up, work_folder

BAR = 0.02


def without(a: Path, out: Path, memory: Any) -> None:
    """The driver on its own."""
    from pycauset.drivers.cholesky import CholeskyDriver
    from pycauset.solver.blocked import BlockedOperation, run
    from pycauset.storage import create_store, open_store

    source = open_store(a)
    factor = create_store(out, source.shape, source.dtype, chunks=source.chunks, structure="lower")
    driver = CholeskyDriver(source, factor, source.dtype)
    run(BlockedOperation("cholesky", driver, source.shape[0] ** 3 / 3, memory=memory, progress=False))
    factor.commit()


def with_journal(a: Path, out: Path, memory: Any) -> Any:
    """As users call it. Returns the journal's statistics."""
    import pycauset
    from pycauset.storage.journal import Journal

    counted: list[Any] = []
    finish = Journal.finish

    def finishing(self: Journal, **attributes: Any) -> None:
        finish(self, **attributes)
        counted.append(self.statistics())

    Journal.finish = finishing  # type: ignore[method-assign]
    try:
        pycauset.linalg.cholesky(pycauset.open(a), out=out, memory=memory, progress=False)
    finally:
        Journal.finish = finish  # type: ignore[method-assign]
    return counted[0]


class ProcessorTime:
    """Seconds of processor time that calls take on whatever thread they run, by name; in a ``with`` block."""

    def __init__(self) -> None:
        from pycauset.storage import chunkfile, commit, native, staging

        self.seconds: Counter[str] = Counter()
        self._places: list[tuple[Any, str, str]] = [
            (chunkfile._Checksum, "add", "checksums"),
            (commit.GroupCommit, "write", "write and commit"),
            (commit, "_sync", "sync"),
            (staging, "stage_chunk", "stage a chunk"),
            (native, "write_chunk", "write a chunk"),
        ]

    def __enter__(self) -> ProcessorTime:
        self._kept = [getattr(place, name) for place, name, _ in self._places]
        for (place, name, label), call in zip(self._places, self._kept, strict=True):
            setattr(place, name, self._timed(label, call))
        return self

    def __exit__(self, *error: object) -> None:
        for (place, name, _), call in zip(self._places, self._kept, strict=True):
            setattr(place, name, call)

    def _timed(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self.seconds[label] += time.thread_time() - start

        return timed

    def journal(self) -> float:
        """What a journal takes on its threads: all of a write but what writing the chunk takes anyhow, and the syncs."""
        return self.seconds["write and commit"] - self.seconds["stage a chunk"] + self.seconds["checksums"] + self.seconds["sync"]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=8)
    add_folder(made)
    options = made.parse_args()
    if options.smoke:
        options.n, options.memory, options.repeats = min(options.n, 1280), "128MB", 1
    from pycauset.copying import copy_store
    from pycauset.seeded import CovarianceStore

    with work_folder(options.folder) as folder:
        title = f"Journal of a Cholesky factorisation of order {options.n} from disk to disk, memory={options.memory}"
        report = Report(title, options, folder=folder, packages=("zarr",))
        copy_store(CovarianceStore(1, options.n, "float64"), folder / "a.zarr", progress=False)
        warm_up()
        times: dict[str, list[float]] = {"without": [], "with": []}
        processor: dict[str, list[float]] = {"without": [], "with": []}
        counted: list[Any] = []
        own: list[float] = []
        calls: list[tuple[str, Callable[..., Any]]] = [("without", without), ("with", with_journal)]
        for number in range(options.repeats + 1):
            for name, call in calls[:: 1 if number % 2 else -1]:  # who goes second finds the disk busier
                shutil.rmtree(folder / "l.zarr", ignore_errors=True)
                drop_cache(folder / "a.zarr")
                before, start = sum(os.times()[:2]), time.perf_counter()
                with ProcessorTime() as spent:
                    found = call(folder / "a.zarr", folder / "l.zarr", options.memory)
                if not number:
                    continue  # the first slots of a process are fresh memory
                times[name].append(time.perf_counter() - start)
                processor[name].append(sum(os.times()[:2]) - before)
                if name == "with":
                    counted.append(found)
                    own.append(spent.journal())
        for name, values in times.items():
            report.figure(f"{name} a journal", Sample(tuple(values)))
        for name, values in processor.items():
            report.figure(f"processor time {name} a journal", Sample(tuple(values)))
        last = counted[-1]
        report.figure("tiles, commits, syncs, renames", f"{last.records}, {last.commits}, {last.syncs}, {last.renames}")
        report.figure("bytes with a checksum", f"{last.bytes}")
        report.figure("processor time of the journal", Sample(tuple(own)))
        share = float(np.median(own)) / float(np.median(processor["without"]))
        report.figure("… / processor time without one", f"{share:.2%}")
        report.figure(
            "… / time without one", f"{np.median(own) / np.median(times['without']):.2%}, if all other cores wait for it"
        )
        seconds = [statistics.seconds for statistics in counted]
        report.figure("counted by the journal's clock", Sample(tuple(seconds)))
        plain, journalled = (np.array(values) for values in times.values())
        report.figure("difference of the medians", f"{np.median(journalled) / np.median(plain) - 1:+.1%}")
        pairs = np.sort(journalled / plain - 1)
        report.figure("slower than without, pair by pair", ", ".join(f"{pair:.1%}" for pair in pairs))
        report.bar("slower than without, median of pairs", float(np.median(pairs)), BAR, at_least=False)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
