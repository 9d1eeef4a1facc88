"""Bytes of Cholesky factorisations and symmetric updates: SimDevice and closed form equal, and near the lower bound.

The link of a unified device (CPU) is the disk's, that of a GPU is PCIe. The bound of a factorisation over square blocks is
n³/(3√S) elements for a fast memory of S elements, plus reading and writing the triangle once; S is what slots may take.
The first part runs whole schedules on SimDevice, which moves no data and counts every byte, for each order on grids of up to
60 × 60 tiles. The second asks the closed form for sizes up to n = 10⁶. The plan that is taken is held against every plan of
every order that the planner can make, whether it looked at it or not: none of another order may count fewer bytes. (One panel
of all columns is the same order by any name: its tasks are left-looking's.)

Chunks on disk are 1024 × 1024, except that less than 1 GB for slots gets 512 × 512. A block of h × w whole chunks in N slots,
h w + h + 1 ≤ N, moves √N (1/h + 1/w)/2 of n³/(3√S) at the least, for n → ∞: over 1.10 with most N below 50, with none from 71 on.
What 1024 × 1024 costs in less than 1 GB is printed, too, as are matrices of fewer than eight chunks a side, whose diagonal chunks
are too much of them.

The third part is the symmetric update C -= A Aᴴ, in triangle blocks against squares, both with their best tiles, and both counted
by SimDevice on the tasks that the factorisation itself runs after a panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from report import ROOT, Report, parser

from pycauset.devices.rates import Place, Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.drivers.cholesky_plan import VARIANTS, CholeskyPlan, candidates
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import TileTask
from pycauset.drivers.triangle_blocks import Layout, blocks, layout, loads
from pycauset.errors import MemoryLimitError
from pycauset.hardware import load_machine
from pycauset.tiling import ceil_div
from pycauset.units import format_bytes

BAR, BAR_UPDATE = 1.10, 0.85
GB = 10**9
LINKS: tuple[tuple[str, str, Place], ...] = (
    ("CPU, disk", "cpu", "disk"),
    ("GPU, pinned", "gpu", "pinned"),
    ("GPU, disk", "gpu", "disk"),
)
PROFILE = load_machine(ROOT / "profiles" / "h200.json").profile
F64 = np.dtype("float64")


class NoLimit:
    """A scope that grants everything: SimDevice takes no memory."""

    def release(self) -> None:
        """Nothing was taken."""

    def request(self, kind: Any, nbytes: int, *, owner: str) -> NoLimit:
        return self

    require = request


class Case(NamedTuple):
    """Order, bytes for device slots, side of chunks."""

    n: int
    slots: int
    chunk: int

    def __str__(self) -> str:
        return f"n = {self.n} in {format_bytes(self.slots)}"


def chosen(n: int, slots: int) -> Case:
    """The case with the chunks that its memory asks for."""
    return Case(n, slots, 512 if slots < GB else 1024)


def driven(case: Case, kind: str, place: Place, variant: str | None) -> tuple[CholeskyDriver, SimDevice, Rates, MatmulLimits]:
    """Driver, device, its rates and limits."""
    rates = Rates(PROFILE, kind, F64, {place})
    side = min(case.chunk, case.n)
    a, factor = (SimStore((case.n, case.n), F64, chunks=(side, side), place=place) for _ in range(2))
    driver = CholeskyDriver(a, factor, F64, variant=variant)
    return driver, SimDevice(rates), rates, MatmulLimits(case.slots, 2 * case.slots)


def planned(case: Case, kind: str, place: Place, variant: str | None) -> tuple[CholeskyDriver, SimDevice, CholeskyPlan] | None:
    """Driver, device and plan; None if the memory is too small for this order."""
    driver, device, rates, limits = driven(case, kind, place, variant)
    try:
        return driver, device, driver.plan(device, limits, rates)
    except MemoryLimitError:
        return None


def everything(case: Case, kind: str, place: Place) -> Iterator[CholeskyPlan]:
    """Every plan of every order that the planner can make."""
    driver, device, rates, limits = driven(case, kind, place, None)
    problem, piece = driver.problem(device), driver.piece_bytes(device)
    for variant in VARIANTS:
        for finer in (False, True):
            yield from candidates(problem, limits, rates, device.unified, piece, variant, finer=finer)


def order(plan: CholeskyPlan) -> str:
    """Its order; one panel of all columns is left-looking."""
    return plan.variant if plan.panel * plan.tile[0] < plan.sizes[0] else "left"


def simulate(device: SimDevice, driver: Any, plan: CholeskyPlan) -> tuple[int, int, int, int]:
    """Bytes uploaded, downloaded, read from and written to disk by the whole schedule."""
    levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
    with AsyncStreamer(device, driver.operands(plan), NoLimit(), **levels) as streamer:
        streamer.run(driver.tasks(plan))
        done = streamer.statistics()
    return done.bytes_uploaded, done.bytes_downloaded, done.bytes_read, done.bytes_written


def volume(plan: CholeskyPlan) -> int:
    """What the planner compares: bytes over the device's link, and the disk's where that is another one."""
    return plan.link_bytes + (0 if plan.unified else plan.disk_read + plan.disk_write)


# -- factorisations ----------------------------------------------------------------------------------------------------


def compare(report: Report, cases: list[Case]) -> None:
    """The closed form against SimDevice, byte for byte."""
    report.line("SimDevice against the closed form (bytes up, down, read, written: equal or not)")
    report.line(
        f"{'link':<12} {'n':>7} {'slots':>8} {'order':<9} {'tiles':>5} {'tasks':>7} {'link bytes':>10} {'÷ bound':>8}  equal"
    )
    unequal = runs = largest = 0
    for title, kind, place in LINKS:
        for case in cases:
            for variant in VARIANTS:
                found = planned(case, kind, place, variant)
                if found is None:
                    continue
                driver, device, plan = found
                counted = simulate(device, driver, plan)
                expected = (plan.upload, plan.download, plan.disk_read, plan.disk_write)
                tiles = ceil_div(case.n, plan.tile[0])
                runs, unequal, largest = runs + 1, unequal + (counted != expected), max(largest, tiles)
                verdict = "yes" if counted == expected else f"NO: {counted}, not {expected}"
                report.line(
                    f"{title:<12} {case.n:>7} {format_bytes(case.slots):>8} {variant:<9} {tiles:>5} {plan.tasks:>7} "
                    f"{format_bytes(plan.link_bytes):>10} {plan.link_bytes / plan.bound:>8.3f}  {verdict}"
                )
    report.line()
    report.figure("schedules simulated", f"{runs}, the largest of {largest} × {largest} tiles")
    report.bar("schedules that differ", unequal, 0, at_least=False, digits=0, exact=True)
    report.line()


def table(report: Report, cases: list[Case]) -> None:
    """The closed form against the bound, and the planner's choice against everything on offer."""
    report.line("Link bytes ÷ bound by the closed form, and the order that the planner takes")
    report.line(
        f"{'link':<12} {'n':>8} {'slots':>8} {'chunk':>5} {'n/√S':>6} {'tile':>5} {'block':>8} "
        + " ".join(f"{variant:>9}" for variant in VARIANTS)
        + f"  {'taken':<9}"
    )
    worst: dict[str, tuple[float, str]] = {}
    outside: dict[str, tuple[float, str]] = {}
    dearer = choices = 0
    slowest, most = 0.0, 0.0
    for title, kind, place in LINKS:
        for case in cases:
            offers = {variant: planned(case, kind, place, variant) for variant in VARIANTS}
            plans = {variant: found[2] for variant, found in offers.items() if found is not None}
            best = planned(case, kind, place, None)
            if best is None or "left" not in plans:
                report.line(f"{title:<12} {case.n:>8} {format_bytes(case.slots):>8} refused")
                worst[title] = (math.inf, str(case))
                continue
            choices += 1
            taken = best[2]
            offered = list(everything(case, kind, place))
            dearer += any(volume(plan) < volume(taken) for plan in offered if order(plan) != order(taken))
            fewest = min(offered, key=lambda plan: (volume(plan), plan.seconds))
            most = max(most, volume(taken) / volume(fewest))
            slowest = max(slowest, taken.seconds / min(plan.seconds for plan in offered if volume(plan) <= volume(taken)))
            ratios = {variant: plan.link_bytes / plan.bound for variant, plan in plans.items()}
            left = plans["left"]
            fits = case == chosen(case.n, case.slots) and case.n >= 8 * case.chunk
            group = worst if fits else outside
            group[title] = max(group.get(title, (0.0, "")), (ratios["left"], f"{case}, chunks of {case.chunk}"))
            cells = " ".join(f"{ratios[variant]:>9.3f}" if variant in ratios else f"{'-':>9}" for variant in VARIANTS)
            report.line(
                f"{title:<12} {case.n:>8} {format_bytes(case.slots):>8} {case.chunk:>5} "
                f"{case.n / math.sqrt(case.slots / 8):>6.1f} {left.tile[0]:>5} "
                f"{f'{left.block[0]}×{left.block[1]}':>8} {cells}  {taken.variant:<9}"
            )
    report.line()
    for title, (ratio, where) in worst.items():
        report.figure(f"worst left-looking, {title}", f"{ratio:.3f} at {where}")
    for title, (ratio, where) in outside.items():
        report.figure(f"outside the bar, {title}", f"{ratio:.3f} at {where}")
    report.bar("worst bytes / bound", max(ratio for ratio, _ in worst.values()), BAR, at_least=False, exact=True)
    report.figure("choices", choices)
    report.bar("choices of an order that moves more than another", dearer, 0, at_least=False, digits=0, exact=True)
    report.figure("most bytes ÷ the fewest of any plan", f"{most:.3f} (smaller tiles of the same order)")
    report.figure("most seconds ÷ the least of plans with no more bytes", f"{slowest:.3f}")
    report.line()


def simulated_cases(smoke: bool) -> list[Case]:
    if smoke:
        return [chosen(6000, GB // 4), chosen(4096, GB // 5)]
    cases = [chosen(n, slots) for slots in (GB // 4, GB, 4 * GB) for n in (8192, 12_288, 20_011, 30_720)]
    return [*cases, Case(61_440, GB, 1024), Case(60_001, 2 * GB, 1024)]


def planned_cases(smoke: bool) -> list[Case]:
    sizes = (8192, 12_288, 20_011, 32_768, 65_536, 111_803, 200_000, 500_000, 1_000_000)
    if smoke:
        return [chosen(n, slots) for n in (12_288, 111_803) for slots in (GB // 2, 8 * GB)]
    cases = [chosen(n, slots) for slots in (GB // 4, GB // 2, GB, 2 * GB, 8 * GB, 64 * GB) for n in sizes]
    coarse = [Case(n, slots, 1024) for slots in (GB // 4, GB // 2) for n in (12_288, 20_011, 65_536, 200_000, 1_000_000)]
    return [*cases, *coarse, chosen(4096, GB), chosen(4096, 64 * GB)]


# -- symmetric updates -------------------------------------------------------------------------------------------------


class Update(CholeskyDriver):
    """What a factorisation in triangle blocks does after its first panel: ``C_ij -= Σ_k L_ik L_jkᴴ`` for all i ≥ j behind it."""

    chosen: Layout

    def tasks(self, plan: CholeskyPlan) -> Iterator[TileTask]:
        self._side, self._keep = plan.tile[0], 0
        for pairs in blocks(self.chosen, plan.capacity):
            yield from self._update(pairs, range(plan.panel), finish=True)


def counted(chosen: Layout, capacity: int, tile: int = 8) -> int:
    """Tiles of A that SimDevice loads in an update whose A is one tile wide: rows 1 and on of a matrix, A its first column."""
    rates = Rates(PROFILE, "cpu", F64, {"disk"})
    rows = chosen.last - chosen.first
    n = (rows + 1) * tile
    store = SimStore((n, n), F64, chunks=(tile, tile), place="disk")
    driver = Update(store, store, F64)
    driver.chosen = chosen._replace(first=1, last=rows + 1)
    plan = CholeskyPlan(True, (n,), "float64", (tile, tile), (1, 1), (capacity + 3,), "triangle", panel=1, capacity=capacity)
    read = simulate(SimDevice(rates), driver, plan)[2]
    return read // (8 * tile * tile) - rows * (rows + 1) // 2


def best_tiles(ratio: float, triangles: bool) -> tuple[float, int, int, Layout]:
    """The layout with the fewest loads over all tile sides, for n = ``ratio`` √S: loads over √S, slots, tile rows, layout."""
    found = None
    for slots in range(12, 1200):
        capacity = slots - 3
        count = math.ceil(ratio * math.sqrt(slots))
        chosen = layout(count, capacity)
        if not triangles:
            chosen = Layout(0, count, 0, 0, chosen.side)
        moved = loads(chosen, capacity) / math.sqrt(slots)
        if found is None or moved < found[0]:
            found = moved, slots, count, chosen
    assert found is not None
    return found


def updates(report: Report, ratios: list[float], smoke: bool) -> None:
    report.line("Symmetric update, elements of A loaded in each column of A, in units of n²/√(2S) (1 is the bound)")
    report.line(f"{'n/√S':>6} {'squares':>8} {'triangles':>9} {'ratio':>6}  triangles with")
    worst, unequal, runs = 0.0, 0, 0
    most = 500 if smoke else 900
    for ratio in ratios:
        square, triangle = best_tiles(ratio, False), best_tiles(ratio, True)
        for _, slots, count, chosen in (square, triangle):
            if count <= most:  # every tile of every block, through the streamer
                runs += 1
                unequal += counted(chosen, slots - 3) != loads(chosen, slots - 3)
        unit = ratio**2 / math.sqrt(2)
        fraction = triangle[0] / square[0]
        if ratio >= 30:
            worst = max(worst, fraction)
        report.line(
            f"{ratio:>6g} {square[0] / unit:>8.3f} {triangle[0] / unit:>9.3f} {fraction:>6.3f}  "
            f"{triangle[3].rows} rows of {triangle[2]} in groups of {triangle[3].group}, {triangle[1]} slots"
        )
    report.line()
    report.figure("updates simulated", runs)
    report.bar("simulated updates that differ", unequal, 0, at_least=False, digits=0, exact=True)
    report.bar("triangles / squares, n/√S ≥ 30", worst, BAR_UPDATE, at_least=False, exact=True)


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report("bytes of Cholesky factorisations and symmetric updates against their bounds", options)
    compare(report, simulated_cases(options.smoke))
    table(report, planned_cases(options.smoke))
    far = (20, 25, 30, 32, 34, 36, 38, 40, 50, 60, 80, 100)
    updates(report, [30.0] if options.smoke else [float(ratio) for ratio in far], options.smoke)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
