"""Every test runs in a home and scratch folder of its own, with a made-up hardware profile, and must leave nothing behind."""

from __future__ import annotations

import gc
import os
import secrets
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.deadlock import keep_terminal

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "profiles"

hypothesis.settings.register_profile(
    "pycauset",
    deadline=None,  # no test measures time
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("pycauset")


# ---- the machine that tests see -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose cached profile fits this machine, so that no test waits for the audit."""
    folder = tmp_path_factory.mktemp("home")
    folder.chmod(0o700)
    source = PROFILES / "no_gpu.json"
    if source.exists():
        from pycauset.hardware import fingerprint, load_machine
        from pycauset.hardware.cache import write_profile

        profile = load_machine(source).profile
        disk = profile.disk.model_copy(update={"folder": str(folder)})
        profile = profile.model_copy(update={"fingerprint": fingerprint(), "disk": disk})
        assert write_profile(folder / "hardware_profile.json", profile) is None
    return folder


@pytest.fixture(autouse=True)
def isolated(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settings start from their defaults, the cached profile is the made-up one, scratch files go to a folder of the test."""
    from pycauset import config

    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which it may undo
        for setting in config.SETTINGS.values():
            patch.delenv(setting.env, raising=False)
        patch.setenv("PYCAUSET_HOME", str(home))
        patch.setenv("PYCAUSET_SCRATCH", str(scratch))
        patch.setattr(config, "_configured", {})
        yield scratch


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Inputs are fresh in every run; to repeat a failure, hypothesis's too, set PYCAUSET_TEST_SEED to what it reports."""
    import numpy as np  # not before the number of BLAS threads is set

    seed = int(os.environ["PYCAUSET_TEST_SEED"])
    request.node.add_report_section("setup", "seed", f"PYCAUSET_TEST_SEED={seed}")
    source = np.random.SeedSequence([seed, zlib.crc32(request.node.nodeid.encode())])  # no two tests see the same
    lock, draw = threading.Lock(), np.random.default_rng

    def default_rng(*given: Any, **named: Any) -> np.random.Generator:
        if given or named or sys._getframe(1).f_globals.get("__name__", "").startswith("pycauset."):
            return draw(*given, **named)  # what the library draws by itself stays its own affair
        with lock:
            return draw(source.spawn(1)[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", default_rng)
        yield


@pytest.hookimpl(tryfirst=True)  # before hypothesis looks at its option, and before there are workers: they inherit the variable
def pytest_configure(config: pytest.Config) -> None:
    keep_terminal()
    if not os.environ.get("PYCAUSET_TEST_SEED"):
        os.environ["PYCAUSET_TEST_SEED"] = str(secrets.randbits(32))
    if config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = os.environ["PYCAUSET_TEST_SEED"]
    if workers := config.getoption("numprocesses", default=None):
        # Threads of one worker's BLAS spin while the other's wait for a core: products take three times as long.
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_finish() -> None:
    """Thousands of collected tests are not garbage: no later collection needs to look at them."""
    gc.collect()
    gc.freeze()


# ---- nothing is left behind ---------------------------------------------------------------------------------------


def _threads() -> set[str]:
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if thread.name.startswith("pycauset-")}


def _tickets() -> set[str]:
    module = sys.modules.get("pycauset.governor.governor")
    if module is None or module._process_governor is None:
        return set()
    return {f"{h.owner}: {h.kind} {h.nbytes} bytes (ticket {h.serial})" for h in module._process_governor.outstanding()}


def _without_caches() -> set[str]:
    """Tickets that are left when what is only kept for later use has been given back."""
    if _tickets():
        for kind in ("device", "pinned", "host"):
            sys.modules["pycauset.governor.governor"]._process_governor.reclaim(kind)
    return _tickets()


def _settled(look: Callable[[], set[str]], before: set[str], seconds: float = 5.0) -> set[str]:
    """What `look` finds beyond `before`, after threads that are about to end have had their time, and garbage has gone."""
    until = time.monotonic() + seconds
    while (left := look() - before) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.02)
    return left


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


_failed = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest, isolated: Path) -> Iterator[None]:
    """No thread of ours, no ticket and no scratch file outlives a test that passed."""
    threads, tickets = _threads(), _tickets()
    yield
    if request.node.stash.get(_failed, True):
        return  # the traceback keeps the objects of a failed test alive
    left = _settled(_threads, threads)
    assert not left, f"threads left running: {sorted(left)}"
    left = _settled(_without_caches, tickets)
    assert not left, f"tickets not released: {sorted(left)}"
    # the lock file tells other processes that this one is alive, and goes with it
    left = _settled(lambda: {str(p) for p in isolated.rglob("*") if p.is_file() and p.name != "lock"}, set())
    assert not left, f"scratch files left: {sorted(left)[:5]}"


# ---- real GPUs ------------------------------------------------------------------------------------------------------


def _gpu_is_there() -> bool:
    from pycauset.hardware import gpu_info

    return gpu_info() is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in tests/gpu needs a GPU, and is skipped without one unless PYCAUSET_REQUIRE_GPU is set."""
    for item in items:
        if ROOT / "tests" / "gpu" in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and os.environ.get("PYCAUSET_REQUIRE_GPU", "0") in ("", "0") and not _gpu_is_there():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
