"""Described machines answer through the probe, all of them, for all of pycauset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycauset.devices import audit
from pycauset.errors import ConfigError
from pycauset.hardware import machine, probe

PROFILES = Path(__file__).parents[2] / "profiles"
NAMES = sorted(path.stem for path in PROFILES.glob("*.json"))


def test_the_machines_of_the_issue_are_there() -> None:
    assert {"h200", "laptop_8gb", "no_gpu", "slow_pcie", "tiny_container"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_described_machine_answers_every_question(name: str) -> None:
    fake = machine.load_machine(PROFILES / f"{name}.json")
    before = probe.current_probe()
    with probe.use_probe(fake):
        assert probe.cpu_info() == fake.cpu_info()
        assert probe.memory_state() == fake.memory_state()
        assert probe.gpu_info() == fake.gpu_info()
        assert probe.gpu_info(1) is None
        assert probe.gpu_memory() == fake.gpu_memory()
        assert (probe.gpu_problem() is None) == (fake.gpu_info() is not None)
        assert probe.disk_info(Path("/")) == fake.disk_info(Path("/"))
        assert probe.library_versions() == fake.library_versions()
        profile = audit.load_profile(force=True)
        assert profile is fake.profile
        assert profile.fingerprint == probe.fingerprint()
        assert audit.measure() is profile
    assert probe.current_probe() is before


@pytest.mark.parametrize("name", NAMES)
def test_a_description_does_not_contradict_itself(name: str) -> None:
    fake = machine.load_machine(PROFILES / f"{name}.json")
    gpu, profile = fake.gpu_info(), fake.profile
    assert profile.ram_total == fake.memory_state().total >= fake.memory_state().free
    assert (profile.cpu.name, profile.cpu.cores) == (fake.cpu_info().name, fake.cpu_info().cores)
    if gpu is None or profile.gpu is None:
        assert gpu is None
        assert profile.gpu is None
    else:
        assert (profile.gpu.name, profile.gpu.memory) == (gpu.name, gpu.memory)
        assert max(profile.gpu.h2d_pinned, profile.gpu.d2h_pinned) <= profile.gpu.duplex_pinned


def test_machines_differ_in_their_fingerprints() -> None:
    prints = [json.dumps(machine.load_machine(PROFILES / f"{name}.json").profile.fingerprint) for name in NAMES]
    assert len(set(prints)) == len(NAMES)


def test_the_probe_comes_back_after_an_error() -> None:
    before = probe.current_probe()
    with pytest.raises(RuntimeError), probe.use_probe(machine.load_machine(PROFILES / "no_gpu.json")):
        raise RuntimeError
    assert probe.current_probe() is before


def test_this_machine_can_be_described(tmp_path: Path) -> None:
    profile = audit.measure(tmp_path, cpu_seconds=0, disk_seconds=0, gpu_seconds=0)
    machine.describe_machine(tmp_path / "here.json", profile, tmp_path)
    fake = machine.load_machine(tmp_path / "here.json")
    assert fake.cpu_info() == probe.cpu_info()
    assert fake.profile.fingerprint == profile.fingerprint
    assert fake.profile.cpu == profile.cpu
    assert str(tmp_path) not in (tmp_path / "here.json").read_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"machine": {}}',
        '{"machine": {}, "profile": {}}',
        '{"machine": 3, "profile": 4}',
        "[" * 10**5,
        "0" * 2**21,
    ],
    ids=lambda content: content[:20],
)
def test_bad_descriptions_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        machine.load_machine(path)


def test_a_missing_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        machine.load_machine(tmp_path / "none.json")


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    content = json.loads((PROFILES / "laptop_8gb.json").read_text())
    content["profile"]["cpu"]["call_seconds"] = -1
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="call_seconds"):
        machine.load_machine(path)
