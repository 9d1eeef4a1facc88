"""Whatever lies where the profile should be: a new measurement and one warning, never a crash, never belief."""

from __future__ import annotations

import functools
import json
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pycauset import config
from pycauset.devices import audit, audit_cpu
from pycauset.errors import PycausetWarning
from pycauset.hardware import CpuProfile, HardwareProfile, cache, load_machine, probe

PROFILES = Path(__file__).parents[2] / "profiles"
PROFILE = load_machine(PROFILES / "no_gpu.json").profile
PRINT = PROFILE.fingerprint


class Machine(probe.MachineProbe):
    """This machine without its GPU, a fresh one for each test, so that nothing is remembered from the last."""

    def gpu_info(self, device: int = 0) -> None:
        return None


def undisturbed(*arguments: Any, **options: Any) -> tuple[CpuProfile, bool]:
    """Whatever else this machine is doing while tests run."""
    return audit_cpu.measure_cpu(*arguments, **options)[0], True


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the profile is cached; measuring takes next to no time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_CPU_SECONDS", "_DISK_SECONDS", "_GPU_SECONDS"):
            patch.setattr(audit, name, 0.0)
        patch.setattr(audit, "measure_cpu", undisturbed)
        patch.setenv("PYCAUSET_HOME", str(tmp_path / "home"))
        patch.setenv("PYCAUSET_SCRATCH", str(tmp_path))
        with probe.use_probe(Machine()):
            yield tmp_path / "home" / "hardware_profile.json"


def another_process() -> Any:
    """What a new process would do: nothing is remembered but the file."""
    return probe.use_probe(Machine())


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each measurement of the whole machine."""
    calls: list[int] = []
    real = audit._measure

    @functools.wraps(real)
    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(audit, "_measure", counted)
    return calls


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "profile.json"
    old = os.umask(0)
    try:
        assert cache.write_profile(path, PROFILE) is None
    finally:
        os.umask(old)
    assert cache.read_profile(path, PRINT) == (PROFILE, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert cache.read_profile(tmp_path / "none.json", PRINT) == (None, None)


def test_the_second_process_measures_nothing(path: Path, measurements: list[int]) -> None:
    first = audit.load_profile()
    assert audit.load_profile() is first
    with another_process():
        assert audit.load_profile() == first
    assert len(measurements) == 1


def test_a_disturbed_measurement_is_not_remembered(path: Path, measurements: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "measure_cpu", lambda *a, **k: (undisturbed(*a, **k)[0], False))
    with another_process():
        first = audit.load_profile()
        assert audit.load_profile() is first
    assert len(measurements) == 1
    assert not path.exists()
    monkeypatch.setattr(audit, "measure_cpu", undisturbed)
    for _ in range(2):
        with another_process():
            audit.load_profile()
    assert len(measurements) == 2
    assert path.exists()


def test_force_measures_again(path: Path, measurements: list[int]) -> None:
    audit.load_profile()
    audit.load_profile(force=True)
    assert len(measurements) == 2


def test_threads_wait_for_one_measurement(path: Path, measurements: list[int]) -> None:
    start = threading.Barrier(8)

    def load() -> HardwareProfile:
        start.wait()
        return audit.load_profile()

    with ThreadPoolExecutor(8) as pool:
        profiles = [f.result() for f in [pool.submit(load) for _ in range(8)]]
    assert len(measurements) == 1
    assert all(profile is profiles[0] for profile in profiles)


def _as_json(**changes: Any) -> bytes:
    return json.dumps({**PROFILE.model_dump(mode="json"), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "corrupt"),
        (b"{", "corrupt"),
        (b"\xff\xfe\x00", "corrupt"),
        (b"null", "corrupt"),
        (b"[" * 100_000, "corrupt"),
        (_as_json(ram_total=float("nan")), "ram_total"),
        (_as_json(ram_total=-1), "ram_total"),
        (_as_json(ram_total=10**30), "ram_total"),
        (_as_json(audit_seconds=float("inf")), "audit_seconds"),
        (_as_json(version=99), "another release"),
        (_as_json(fingerprint={"cpu": "another"}), "cpu"),
        (b" " * (cache.LARGEST_FILE + 1), "bytes"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_bad_content_is_measured_again_with_one_warning(path: Path, measurements: list[int], content: bytes, reason: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.warns(PycausetWarning, match=reason) as caught:
        audit.load_profile()
    assert len(caught) == len(measurements) == 1
    with another_process():
        audit.load_profile()  # the bad file has been replaced; a warning would be an error here
    assert len(measurements) == 1


def _link(path: Path) -> None:
    target = path.with_name("target.json")
    cache.write_profile(target, PROFILE)
    path.symlink_to(target)


def _writable_by_all(path: Path) -> None:
    cache.write_profile(path, PROFILE)
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (_link, "symbolic link"),
        (_writable_by_all, "others may write"),
        (lambda path: os.mkfifo(path, 0o600), "regular file"),
        (lambda path: path.symlink_to(path), "symbolic link"),
    ],
    ids=["link", "writable", "fifo", "loop"],
)
def test_hostile_files_are_replaced_unread(path: Path, measurements: list[int], place: Any, reason: str) -> None:
    path.parent.mkdir()
    place(path)
    with pytest.warns(PycausetWarning, match=reason) as caught:
        audit.load_profile()
    assert len(caught) == len(measurements) == 1
    assert stat.S_ISREG(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_a_links_target_is_never_written(path: Path) -> None:
    path.parent.mkdir()
    precious = path.with_name("precious")
    precious.write_text("precious")
    path.symlink_to(precious)
    with pytest.warns(PycausetWarning, match="symbolic link"):
        audit.load_profile()
    assert precious.read_text() == "precious"


def test_another_users_file_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit.load_profile()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    profile, reason = cache.read_profile(path, probe.fingerprint())
    assert profile is None
    assert reason is not None
    assert f"belongs to user {me}" in reason


@pytest.mark.parametrize("kind", ["file in the way", "folder in the way", "no such device"])
def test_a_home_that_cannot_be_written(path: Path, measurements: list[int], kind: str) -> None:
    # File modes would not stop the superuser, under whom containers often test.
    match kind:
        case "file in the way":
            path.parent.write_text("not a folder")
        case "folder in the way":
            path.mkdir(parents=True)
        case "no such device":
            path.parent.symlink_to("/proc/self/nothing")
    with pytest.warns(PycausetWarning) as caught:
        profile = audit.load_profile()
    assert len(caught) == len(measurements) == 1
    assert "cannot be written" in str(caught[0].message)
    assert audit.load_profile() is profile  # measured and warned once in a process
    if path.parent.is_dir():
        assert os.listdir(path.parent) == [path.name]


def test_a_home_with_a_zero_byte(path: Path, measurements: list[int]) -> None:
    with config.settings(home="/tmp/\0"), pytest.warns(PycausetWarning, match="cannot be written") as caught:
        audit.load_profile()
    assert len(caught) == len(measurements) == 1


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profiles = [PROFILE.model_copy(update={"measured_at": f"{i}" * 200}) for i in range(4)]
    cache.write_profile(path, profiles[0])
    start, done = threading.Barrier(5), threading.Event()

    def write(profile: HardwareProfile) -> None:
        start.wait()
        for _ in range(10):
            assert cache.write_profile(path, profile) is None

    def read() -> int:
        start.wait()
        seen = 0
        while not done.is_set() or not seen:
            profile, reason = cache.read_profile(path, PRINT)
            assert reason is None
            assert profile in profiles
            seen += 1
        return seen

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        for future in [pool.submit(write, profile) for profile in profiles]:
            future.result()
        done.set()
        assert reader.result() > 0
    assert os.listdir(tmp_path) == ["profile.json"]


def test_a_new_scratch_disk_is_measured_alone(path: Path, measurements: list[int]) -> None:
    first = audit.load_profile()

    class Moved(Machine):
        def disk_info(self, folder: Path) -> probe.DiskInfo:
            return probe.DiskInfo(10**12, "xfs", "/dev/new")

    with probe.use_probe(Moved()):
        second = audit.load_profile()
    assert (second.disk.device, second.cpu) == ("/dev/new", first.cpu)
    assert len(measurements) == 1
    assert cache.read_profile(path, probe.fingerprint())[0] == second


def test_a_gpu_that_fails_is_left_out_and_not_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load_machine(PROFILES / "laptop_8gb.json").gpu_info()

    class WithGpu(Machine):
        def gpu_info(self, device: int = 0) -> Any:
            return gpu

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("cudaErrorUnknown")

    monkeypatch.setattr(audit, "measure_gpu", fails)
    with probe.use_probe(WithGpu()), pytest.warns(PycausetWarning, match="cudaErrorUnknown") as caught:
        assert audit.load_profile().gpu is None
    assert len(caught) == 1
    assert not path.exists()


def test_a_described_machine_leaves_the_real_file_alone(path: Path) -> None:
    audit.load_profile()
    before = path.read_bytes()
    with probe.use_probe(load_machine(PROFILES / "h200.json")), warnings.catch_warnings(action="error"):
        audit.load_profile(force=True)
    assert path.read_bytes() == before
