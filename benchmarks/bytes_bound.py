"""Bytes over the binding link against the lower bound: SimDevice and closed form equal, and within 1.10 of the bound.

The link of a unified device (CPU) is the disk's, that of a GPU is PCIe. The bound is Smith, Lowery, Langou and van de
Geijn's 2mnk/√S elements for a fast memory of S elements, plus reading both inputs and writing the output once; S is the
memory that slots may take. The first part runs the whole schedule on SimDevice, which moves no data and counts every
byte, on grids up to 60 × 60 tiles. The second asks the closed form for sizes up to n = 10⁶.

Stores on disk have chunks of 1024 × 1024, except that less than 1 GB for slots gets 512 × 512: 59 chunks of 8 MiB are too
coarse for a block close to √S. What that costs is printed too.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
from report import ROOT, Report, parser

from pycauset.devices.rates import Place, Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits, MatmulPlan, lower_bound
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import MemoryLimitError
from pycauset.hardware import load_machine
from pycauset.units import format_bytes

BAR = 1.10
GB = 10**9
LINKS: tuple[tuple[str, str, Place], ...] = (
    ("CPU, disk", "cpu", "disk"),
    ("GPU, pinned", "gpu", "pinned"),
    ("GPU, disk", "gpu", "disk"),
)


class Case(NamedTuple):
    """``op(A) @ B``: sizes, slot memory in bytes (device and host), element type, and the variations of gemm."""

    m: int
    n: int
    k: int
    device: int
    host: int
    chunk: int = 1024
    dtype: str = "float64"
    op: str = "N"
    beta: float = 0.0
    rank_k: bool = False

    def __str__(self) -> str:
        extra = f" {self.dtype}" * (self.dtype != "float64") + " Aᵀ" * (self.op == "T")
        extra += " +C" * (self.beta != 0) + " AAᵀ" * self.rank_k
        return f"{self.m}×{self.k}×{self.n}{extra}"


def fitting(case: Case, place: Place) -> Case:
    """The case with the chunks that its memory asks for."""
    return case._replace(chunk=512) if place == "disk" and case.device < GB else case


class NoLimit:
    """A scope that grants everything: SimDevice takes no memory."""

    def release(self) -> None:
        """Nothing was taken."""

    def request(self, kind: Any, nbytes: int, *, owner: str) -> NoLimit:
        return self

    require = request


def driver_for(case: Case, kind: str, place: Place) -> tuple[MatmulDriver, SimDevice]:
    dtype = np.dtype(case.dtype)

    def store(rows: int, cols: int) -> SimStore:
        return SimStore((rows, cols), dtype, chunks=(min(case.chunk, rows), min(case.chunk, cols)), place=place)

    a = store(case.m, case.k) if case.op == "N" else store(case.k, case.m)
    b = a if case.rank_k else store(case.k, case.n)
    op_b = {"N": "T", "T": "N"}[case.op] if case.rank_k else "N"
    profile = load_machine(ROOT / "profiles" / "h200.json").profile
    driver = MatmulDriver(a, b, store(case.m, case.n), dtype, op_a=case.op, op_b=op_b, beta=case.beta, rank_k=case.rank_k)
    return driver, SimDevice(Rates(profile, kind, dtype, {place}))


def plan_for(case: Case, kind: str, place: Place) -> tuple[MatmulDriver, SimDevice, MatmulPlan]:
    driver, device = driver_for(case, kind, place)
    return driver, device, driver.plan(device, MatmulLimits(case.device, case.host), device.rates)


def simulate(driver: MatmulDriver, device: SimDevice, plan: MatmulPlan) -> tuple[int, int, int, int]:
    """Bytes uploaded, downloaded, read from and written to disk by the whole schedule."""
    with AsyncStreamer(
        device, driver.operands(plan), NoLimit(), host_slots=plan.host_slots, host_slot_bytes=plan.host_slot_bytes
    ) as streamer:
        streamer.run(driver.tasks(plan))
        done = streamer.statistics()
    return done.bytes_uploaded, done.bytes_downloaded, done.bytes_read, done.bytes_written


def compare(report: Report, cases: list[Case]) -> dict[str, tuple[float, str]]:
    """The closed form against SimDevice, byte for byte."""
    report.line("SimDevice against the closed form (bytes up, down, read, written: equal or not)")
    heading = f"{'link':<12} {'m×k×n':<28} {'slots':>9} {'tiles of C':>10} {'steps':>5} {'tasks':>7}"
    report.line(f"{heading} {'link bytes':>10} {'÷ bound':>8}  equal")
    unequal = runs = 0
    tiles = 0
    worst: dict[str, tuple[float, str]] = {}
    for title, kind, place in LINKS:
        for given in cases:
            case = fitting(given, place)
            driver, device, plan = plan_for(case, kind, place)
            found = simulate(driver, device, plan)
            planned = (plan.upload, plan.download, plan.disk_read, plan.disk_write)
            rows, cols, steps = plan.grid
            equal = found == planned
            runs += 1
            unequal += not equal
            tiles = max(tiles, rows * cols)
            ratio = plan.link_bytes / bound_of(case)
            worst[title] = max(worst.get(title, (0.0, "")), (ratio, f"{case} in {format_bytes(case.device)}"))
            verdict = "yes" if equal else f"NO: {found}, not {planned}"
            report.line(
                f"{title:<12} {case!s:<28} {format_bytes(case.device):>9} {f'{rows}×{cols}':>10} {steps:>5} {plan.tasks:>7} "
                f"{format_bytes(plan.link_bytes):>10} {ratio:>8.3f}  {verdict}"
            )
    report.line()
    report.figure("schedules simulated", f"{runs}, the largest of {tiles} tiles of C")
    report.bar("schedules that differ", unequal, 0, at_least=False, digits=0, exact=True)
    report.line()
    return worst


def bound_of(case: Case) -> float:
    """The bound in bytes over the device's link."""
    size = np.dtype(case.dtype).itemsize
    bound = lower_bound(case.m, case.n, case.k, case.device / size, rank_k=case.rank_k)
    return (bound + (case.m * case.n if case.beta else 0)) * size


def table(report: Report, cases: list[Case], worst: dict[str, tuple[float, str]]) -> None:
    """The closed form against the bound."""
    report.line("Closed form against the bound")
    heading = f"{'link':<12} {'m×k×n':<34} {'slots':>9} {'chunk':>5} {'block of C':>15} {'tasks':>11}"
    report.line(f"{heading} {'planned':>10} {'bound':>10} {'ratio':>7}")
    for title, kind, place in LINKS[:2]:
        for given in cases:
            case = fitting(given, place)
            try:
                plan = plan_for(case, kind, place)[2]
            except MemoryLimitError as error:
                report.line(f"{title:<12} {case!s:<34} {format_bytes(case.device):>9} refused: {error}")
                worst[title] = (float("inf"), str(case))
                continue
            ratio = plan.link_bytes / bound_of(case)
            height, width = plan.block[0] * plan.tile[0], plan.block[1] * plan.tile[1]
            report.line(
                f"{title:<12} {case!s:<34} {format_bytes(case.device):>9} {case.chunk:>5} {f'{height}×{width}':>15} "
                f"{plan.tasks:>11} "
                f"{format_bytes(plan.link_bytes):>10} {format_bytes(bound_of(case)):>10} {ratio:>7.3f}"
            )
            worst[title] = max(worst.get(title, (0.0, "")), (ratio, f"{case} in {format_bytes(case.device)}"))
    report.line()
    for title, (ratio, where) in worst.items():
        report.figure(f"worst, {title}", f"{ratio:.3f} at {where}")
    coarse = [case for case in cases if case.device < GB]
    found = [(plan_for(case, "cpu", "disk")[2].link_bytes / bound_of(case), str(case)) for case in coarse]
    if found:
        report.figure("CPU below 1 GB, chunks of 1024", "{:.3f} at {} (outside the bar)".format(*max(found)))
    report.bar("worst bytes / bound", max(ratio for ratio, _ in worst.values()), BAR, at_least=False, exact=True)


def simulated_cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(4096, 4096, 4096, GB // 5, GB // 2), Case(5000, 3000, 2500, GB // 5, GB // 2)]
    cases = []
    for slots in (GB // 2, GB, 4 * GB):
        host = 2 * slots
        cases += [
            Case(20 * 1024, 20 * 1024, 20 * 1024, slots, host),
            Case(60 * 1024, 4096, 60 * 1024, slots, host),
            Case(30_011, 50_021, 10_007, slots, host),
            Case(3_001, 61_001, 20_011, slots, host),
            Case(20_011, 10_007, 5_003, slots, host, op="T", beta=1.0),
            Case(20_011, 20_011, 10_007, slots, host, rank_k=True),
            Case(20_011, 20_011, 10_007, slots, host, op="T", rank_k=True),
            Case(20_011, 10_007, 15_013, slots, host, dtype="complex64"),
            Case(20_011, 10_007, 15_013, slots, host, dtype="float32"),
        ]
    return [*cases, Case(60 * 1024, 60 * 1024, 8192, GB, 2 * GB), Case(60 * 1024, 60 * 1024, 8192, 4 * GB, 40 * GB)]


def planned_cases(smoke: bool) -> list[Case]:
    shapes = [
        (8192, 8192, 8192),
        (32_768, 32_768, 32_768),
        (131_072, 131_072, 131_072),
        (1_000_000, 1_000_000, 1_000_000),
        (1_000_000, 10_000, 10_000),
        (10_000, 1_000_000, 10_000),
        (10_000, 10_000, 1_000_000),
        (1_000_000, 1_000_000, 1_000),
        (1_000_000, 1_000, 1_000_000),
        (1_000, 1_000_000, 1_000_000),
        (99_991, 30_011, 50_021),
    ]
    if smoke:
        return [Case(*shape, device=slots, host=2 * slots) for shape in shapes[:2] for slots in (GB // 2, 8 * GB)]
    sizes = (GB // 2, 2 * GB, 8 * GB, 64 * GB)
    cases = [Case(*shape, device=slots, host=2 * slots) for slots in sizes for shape in shapes]
    for dtype in ("float32", "complex64", "complex128"):
        cases += [Case(131_072, 131_072, 131_072, 8 * GB, 16 * GB, dtype=dtype)]
    return cases


def main() -> int:
    made: argparse.ArgumentParser = parser(__doc__)
    options = made.parse_args()
    report = Report("bytes over the binding link against the lower bound", options)
    worst = compare(report, simulated_cases(options.smoke))
    table(report, planned_cases(options.smoke), worst)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
