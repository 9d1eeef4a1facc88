"""Journals whose lines are whole but say what nobody wrote, or nothing: a JournalError with the remedy, or the right result."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycauset
from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.triangular import TriangularInverseDriver, TriangularSolveDriver
from pycauset.errors import CorruptTileError, JournalError, MemoryLimitError, NotPositiveDefiniteError
from pycauset.linalg import cholesky, inv, solve_triangular
from pycauset.storage import TileStore, as_store, create_store
from pycauset.storage.journal import read_journal
from pycauset.storage.journalfile import format_record
from pycauset.tiling import Rect
from tests.drivers.fakes import PROFILE, FakeGpu
from tests.interruptions import leaves_something, watched_journals
from tests.linalg.cases import DTYPES, on_disk, spd, triangular

Place = tuple[str | int, ...]
SIDE, MEMORY = 180, "300kB"  # six tiles of 32 to a side, the last one ragged
TRIALS = 12
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.sampled_from([10**6, 2**62, 10**30, "", "cpu", "gpu", "left", "right", "panel of X", "float32", [], {}, [32, 64], [[[]]]]),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 200), max_size=4),
)


def written(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(map(format_record, records)))


def places(value: Any, at: Place = ()) -> list[Place]:
    """Every key and index of a JSON value."""
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in inside for place in ((*at, key), *places(entry, (*at, key)))]


def changed(value: Any, data: st.DataObject) -> Any:
    """A copy in which one or two entries are gone or say something else."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(places(value)))
        holder = value
        for key in above:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = data.draw(VALUES)
        else:
            del holder[last]
        if not places(value):
            break
    return value


class Interrupted:
    """A call that was interrupted half-way, as it lies on disk; it can be put back as often as one likes."""

    def __init__(self, folder: Path, kind: str) -> None:
        # Not a generator of the test that happens to come first.
        rng = np.random.default_rng([int(os.environ["PYCAUSET_TEST_SEED"]), zlib.crc32(kind.encode())])
        self.folder, self.saved = folder / kind, folder / f"{kind} saved"
        self.folder.mkdir()
        a = on_disk(spd(SIDE, "float64", rng), self.folder / "a.zarr")
        t = on_disk(triangular(SIDE, "float64", True, rng), self.folder / "t.zarr")
        b = on_disk(rng.standard_normal((SIDE, SIDE)), self.folder / "b.zarr")
        x = self.folder / "x.zarr"
        calls: dict[str, tuple[np.ndarray, Callable[..., Any]]] = {
            "cholesky": (np.linalg.cholesky(np.asarray(a)), lambda **o: cholesky(a, out=x, memory=MEMORY, **o)),
            "in place": (
                np.linalg.cholesky(np.asarray(a)),
                lambda **o: cholesky(pycauset.open(a.store.path), overwrite=True, memory=MEMORY, **o),
            ),
            "solve": (
                np.linalg.solve(np.asarray(t), np.asarray(b)),
                lambda **o: solve_triangular(t, b, lower=True, out=x, memory=MEMORY, **o),
            ),
            "inverse": (
                np.linalg.inv(np.asarray(t)),
                lambda **o: inv(t, assume_a="lower triangular", out=x, memory=MEMORY, **o),
            ),
        }
        self.expected, self.call = calls[kind]
        self.target = self.folder / ("a.zarr" if kind == "in place" else "x.zarr")
        self.names = [f"{self.target.name}.journal", "a.zarr" if kind == "in place" else ".x.zarr.resumable"]
        self.journal = self.folder / self.names[0]

        def stop(done: float, total: float) -> None:
            if done > 0.4 * total and leaves_something(done, total, tiles=2):
                raise KeyboardInterrupt

        with watched_journals(), pytest.raises(KeyboardInterrupt):
            self.call(progress=stop)
        self.saved.mkdir()
        for name in self.names:
            self._copy(self.folder / name, self.saved / name)
        self.header, self.records = read_journal(self.journal)
        assert sum("tile" in record for record in self.records) > 1

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)

    def put_back(self) -> None:
        for name in ("x.zarr", *self.names):
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        for name in self.names:
            self._copy(self.saved / name, self.folder / name)

    def goes_on_or_says_why(self, *, truthful: bool = True) -> None:
        """Make the call again; a journal that is not ``truthful`` about tiles may lead to wrong ones, but not to odd errors."""
        in_place = self.target.name == "a.zarr"
        told = ""
        try:
            result = self.call()
        except JournalError as error:
            told = str(error)
        except CorruptTileError as error:
            told = f"{self.journal}: {error}" if in_place else ""
        except NotPositiveDefiniteError:  # of the factorisation that went on with wrong tiles
            assert not truthful
            return
        if told:
            assert str(self.journal) in told
            assert ("make the matrix again and delete the journal" if in_place else 'resume="restart"') in told
        else:
            assert not truthful or np.allclose(np.asarray(result), self.expected, rtol=1e-8, atol=1e-8)

    def refuses(self, header: dict[str, Any], told: str) -> None:
        self.put_back()
        written(self.journal, [header, *self.records])
        with pytest.raises(JournalError, match=told):
            self.call()


KINDS = ["cholesky", "in place", "solve", "inverse"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Interrupted]:
    return {}


@pytest.fixture
def run(runs: dict[str, Interrupted], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Interrupted:
    kind: str = request.param
    if kind not in runs:
        runs[kind] = Interrupted(tmp_path_factory.mktemp("hostile"), kind)
    return runs[kind]


@pytest.mark.parametrize("run", KINDS, indirect=True)
@settings(max_examples=60)
@given(data=st.data())
def test_any_change_of_the_header_is_refused_or_harmless(run: Interrupted, data: st.DataObject) -> None:
    run.put_back()
    header = changed(run.header, data) if data.draw(st.booleans()) else {**run.header, "plan": changed(run.header["plan"], data)}
    written(run.journal, [header, *run.records])
    run.goes_on_or_says_why()


@pytest.mark.parametrize("run", KINDS, indirect=True)
@settings(max_examples=30)
@given(data=st.data())
def test_any_change_of_a_record_is_refused_or_harmless(run: Interrupted, data: st.DataObject) -> None:
    run.put_back()
    records = [record if isinstance(record, dict) else {} for record in changed(run.records, data)]
    written(run.journal, [run.header, *records])
    before, after = ([[r.get("tile"), r.get("generation")] for r in some] for some in (run.records, records))
    run.goes_on_or_says_why(truthful=all(entry in before for entry in after))


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_each_field_is_needed_and_named(run: Interrupted) -> None:
    """Without a field of the header, or of the plan, or with one of another kind, the error has its name."""
    for name in ("request", "in_place", "output", "plan", "started_ns"):
        for header in ({**run.header, name: None}, {k: v for k, v in run.header.items() if k != name}):
            run.refuses(header, f"its header has {name} = None")
    plan = run.header["plan"]["plan"]
    for name, value in plan.items():
        without = {k: v for k, v in plan.items() if k != name}
        run.refuses({**run.header, "plan": {"device": "cpu", "plan": without}}, f"plan.plan.{name} is missing")
        odd: Any = 0.5 if isinstance(value, int) else 3
        if not isinstance(value, float):
            run.refuses({**run.header, "plan": {"device": "cpu", "plan": {**plan, name: odd}}}, rf"plan.plan.{name} is {odd}")
    run.refuses({**run.header, "plan": {"device": "cpu", "plan": {**plan, "colour": 1}}}, "plan.plan.colour is unknown")
    run.refuses({**run.header, "plan": {"device": "abacus", "plan": plan}}, "plan.device is 'abacus'")
    for name, odd in (
        ("sizes", [2 * size for size in plan["sizes"]]),
        ("dtype", "float32"),
        ("variant", "sideways"),
        ("tile", [16, 16]),
        ("tile", [64, 64]),
        ("tile", [0, 0]),
        ("block", [0, 1]),
        ("block", [1000, 1]),
        ("slots", [0] * len(plan["slots"])),
        ("slots", [10**9] * len(plan["slots"])),
        ("slots", [*plan["slots"], 1]),
        ("unified", False),
    ):
        told = {"unified": "plan.device is 'cpu'", "tile": r"plan.plan.\w+ is "}.get(name, f"plan.plan.{name} is ")
        run.refuses({**run.header, "plan": {"device": "cpu", "plan": {**plan, name: odd}}}, told)
    run.refuses({**run.header, "output": {**run.header["output"], "shape": [7, 7]}}, r"output.shape was \[7, 7\]")


def driver_of(kind: str, a: TileStore, out: TileStore) -> Any:
    journal: Any = object()  # never asked
    if kind == "cholesky":
        return CholeskyDriver(a, out, a.dtype, journal=journal)
    if kind == "solve":
        return TriangularSolveDriver(a, out, a.dtype, origin=as_store(np.ones(out.shape, a.dtype)), journal=journal)
    return TriangularInverseDriver(a, out, a.dtype, journal=journal)


@pytest.mark.parametrize("device", [NumpyDevice(), FakeGpu()], ids=["unified", "not unified"])
@pytest.mark.parametrize("kind", ["cholesky", "solve", "inverse"])
def test_a_driver_takes_its_own_plans_and_no_others(tmp_path: Path, device: Any, kind: str) -> None:
    """Whatever the limits are; tiles on record must be tiles of the plan, and host slots must hold a piece of one."""
    rng = np.random.default_rng()
    for trial in range(TRIALS):
        dtype = np.dtype(str(rng.choice(DTYPES)))
        n, m = (int(size) for size in rng.integers(2, 150, 2))
        out = create_store(tmp_path / f"{trial}.zarr", (n, m if kind == "solve" else n), dtype, chunks=(16, 16))
        driver = driver_of(kind, as_store(rng.standard_normal((n, n)).astype(dtype)), out)
        plan = None
        while plan is None:
            limits = MatmulLimits(int(rng.integers(14, 200)) * 4096, int(rng.integers(8, 100)) << 18)
            with contextlib.suppress(MemoryLimitError):
                plan = driver.plan(device, limits, Rates(PROFILE, device.kind, dtype))
        plan = type(plan).from_json(json.loads(json.dumps(plan.to_json())))
        high, wide = (min(side, size) for side, size in zip(plan.tile, out.shape, strict=True))
        tile = Rect(0, high, 0, wide)
        driver.check(plan, device, [tile])
        longer, later = Rect(0, high + 1, 0, wide), Rect(1, high, 0, wide)
        refused: list[tuple[str, Any, Rect]] = [("tile", plan, longer), ("tile", plan, later)]
        if not device.unified:
            refused.append(("host_slots", replace(plan, host_slots=0, host_bytes=0), tile))
            refused.append(("host_slot_bytes", replace(plan, host_slot_bytes=1, host_bytes=plan.host_slots), tile))
        for name, wrong, rect in refused:
            with pytest.raises(ValueError, match=f"^{name} is "):
                driver.check(wrong, device, [rect])
        out.discard()
