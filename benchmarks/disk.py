"""What benchmarks with matrices on disk share: pairs with a baseline in RAM, and the peak of memory in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from report import Report, Sample, alternate, child, drop_cache

from pycauset.units import format_bytes, format_flops, parse_bytes

ON_DISK = "pycauset on disk"
_BAR_MEMORY = 512e6


def add_child(made: argparse.ArgumentParser) -> None:
    """``--child FOLDER``: measure the peak of memory there."""
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)


def print_peak(work: Callable[[], object]) -> int:
    """In the child: print bytes at rest, at the peak, and whether the peak could be reset first. Returns the exit status."""
    import pycauset
    from pycauset.hardware import probe

    tiny = np.ones((8, 8))
    pycauset.matmul(tiny, tiny)
    idle = probe.current_rss()
    reset = probe.reset_peak_rss()
    work()
    print(f"{idle} {probe.peak_rss()} {int(reset)}")
    return 0


def bar_on_peak(report: Report, folder: Path, memory: str) -> None:
    """Run the child and hold its peak, over its RSS at rest, against the limit it works under."""
    idle, peak, reset = map(int, child(["--child", str(folder), "--memory", memory]).split()[-3:])
    since = "" if reset else " (since its start)"
    report.figure("memory, fresh process", f"{format_bytes(idle)} idle, {format_bytes(peak)} at the peak{since}")
    limit = min(_BAR_MEMORY, parse_bytes(memory)) / 1e6
    report.bar("peak RSS over idle", (peak - idle) / 1e6, limit, at_least=False, unit=" MB", digits=1)


def pairs(
    report: Report, calls: dict[str, Callable[[], float | None]], operands: Sequence[Path], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds, the operands' pages dropped before every call (outside its time).

    The first round is told, and does not count: a process's first slots are fresh memory, its first BLAS call starts threads.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            for path in operands:
                drop_cache(path)
            times[name].append(alternate({name: call}, 1)[name].values[0])
    first = ", ".join(f"{name} {values.pop(0):.4g} s" for name, values in times.items())
    report.figure("first round, not counted", first)
    return times


def tell_pairs(report: Report, times: dict[str, list[float]], flops: float, baseline: str, bar: float) -> dict[str, float]:
    """The figures of every call and the bar on the ratio of medians; returns the medians."""
    for name, values in times.items():
        report.figure(name, f"{Sample(tuple(values))}, {format_flops(flops / float(np.median(values)))}")
    ratios = [ram / disk for ram, disk in zip(times[baseline], times[ON_DISK], strict=True)]
    report.figure("speed, pair by pair", ", ".join(f"{ratio:.3f}" for ratio in ratios))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    report.bar(f"speed over {baseline}", medians[baseline] / medians[ON_DISK], bar, at_least=True)
    return medians
