"""What a journal costs: the same Cholesky factorisation from disk to disk with and without one, alternating in one run.

With a journal every tile is synced, recorded and renamed, so that the factorisation survives a kill or a power failure at any
moment; without one it writes its chunks and commits. The bar holds for the difference of the medians. The time that the
journal itself counts (checksums, syncs, records, renames, summed over threads) is printed beside it; most of it overlaps.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, Sample, add_folder, drop_cache, parser, warm_up, work_folder

BAR = 0.02


def without(a: Path, out: Path, memory: Any) -> float:
    """The driver on its own. Returns the journal's seconds: none."""
    from pycauset.drivers.cholesky import CholeskyDriver
    from pycauset.solver.blocked import BlockedOperation, run
    from pycauset.storage import create_store, open_store

    source = open_store(a)
    factor = create_store(out, source.shape, source.dtype, chunks=source.chunks, structure="lower")
    driver = CholeskyDriver(source, factor, source.dtype)
    run(BlockedOperation("cholesky", driver, source.shape[0] ** 3 / 3, memory=memory, progress=False))
    factor.commit()
    return 0.0


def with_journal(a: Path, out: Path, memory: Any) -> float:
    """As users call it. Returns the seconds that the journal counts, summed over threads."""
    import pycauset
    from pycauset.storage.journal import Journal

    counted: list[float] = []
    finish = Journal.finish

    def finishing(self: Journal, **attributes: Any) -> None:
        finish(self, **attributes)
        counted.append(self.statistics().seconds)

    Journal.finish = finishing  # type: ignore[method-assign]
    try:
        pycauset.linalg.cholesky(pycauset.open(a), out=out, memory=memory, progress=False)
    finally:
        Journal.finish = finish  # type: ignore[method-assign]
    return counted[0]


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
        counted: list[float] = []
        calls = [("without", without), ("with", with_journal)]
        for number in range(options.repeats + 1):
            for name, call in calls[:: 1 if number % 2 else -1]:  # who goes second finds the disk busier
                shutil.rmtree(folder / "l.zarr", ignore_errors=True)
                drop_cache(folder / "a.zarr")
                start = time.perf_counter()
                seconds = call(folder / "a.zarr", folder / "l.zarr", options.memory)
                if not number:
                    continue  # the first slots of a process are fresh memory
                times[name].append(time.perf_counter() - start)
                if name == "with":
                    counted.append(seconds)
        for name, values in times.items():
            report.figure(f"{name} a journal", Sample(tuple(values)))
        report.figure("counted by the journal", Sample(tuple(counted)))
        plain, journalled = (np.array(values) for values in times.values())
        report.figure("difference of the medians", f"{np.median(journalled) / np.median(plain) - 1:+.1%}")
        report.figure(
            "counted by the journal / time", f"{np.median(counted) / np.median(journalled):.1%}, if none of it overlapped"
        )
        report.bar("slower than without, median of pairs", float(np.median(journalled / plain)) - 1, BAR, at_least=False)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
