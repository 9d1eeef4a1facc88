"""The probe reads made-up ``proc`` and ``sys`` folders the way it reads the real ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset.hardware import probe

GB = 10**9
MEMINFO = "MemTotal:       64000000 kB\nMemFree:         1000000 kB\nMemAvailable:   48000000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_a_container_the_system_counts(tmp_path: Path) -> None:
    state = probe.memory_state(machine(tmp_path, {}))
    assert state == probe.MemoryState(64_000_000 * 1024, 48_000_000 * 1024)


def test_version_2_limit_and_file_pages(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": f"{8 * GB}\n",
            "sys/fs/cgroup/user/job/memory.high": "max\n",
            "sys/fs/cgroup/user/job/memory.current": f"{5 * GB}\n",
            "sys/fs/cgroup/user/job/memory.stat": f"anon {2 * GB}\nactive_file {GB}\ninactive_file {2 * GB}\n",
        },
    )
    assert probe.memory_state(root) == probe.MemoryState(8 * GB, 6 * GB)


def test_an_ancestors_limit_binds_too(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": f"{8 * GB}\n",
            "sys/fs/cgroup/user/job/memory.current": "0\n",
            "sys/fs/cgroup/user/memory.max": f"{7 * GB}\n",
            "sys/fs/cgroup/user/memory.current": f"{4 * GB}\n",
        },
    )
    assert probe.memory_state(root) == probe.MemoryState(7 * GB, 3 * GB)


def test_version_2_soft_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GB}\n",
            "sys/fs/cgroup/memory.high": f"{2 * GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB}\n",
        },
    )
    assert probe.memory_state(root) == probe.MemoryState(2 * GB, GB)


def test_version_1_limit_under_the_hosts_path(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/abc\n",  # a path that only the host has
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\n",
        },
    )
    assert probe.memory_state(root) == probe.MemoryState(3 * GB, 2 * GB)


def test_version_1_without_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GB}\n",
        },
    )
    assert probe.memory_state(root).total == 64_000_000 * 1024


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "2000\n",
        },
    )
    assert probe.memory_state(root) == probe.MemoryState(1000, 0)


@given(st.text(max_size=60), st.text(max_size=30))
def test_unreadable_answers_are_ignored(tmp_path_factory: pytest.TempPathFactory, lines: str, limit: str) -> None:
    root = machine(
        tmp_path_factory.mktemp("root"),
        {
            "proc/self/cgroup": "0::/\n" + lines.encode("utf-8", "replace").decode(),
            "sys/fs/cgroup/memory.max": "x" + limit.encode("utf-8", "replace").decode(),
        },
    )
    assert probe.memory_state(root).total == 64_000_000 * 1024


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_processor_quota(tmp_path: Path, files: dict[str, str], quota: int | None) -> None:
    files["proc/cpuinfo"] = "model name\t: Fast\x1b[31m One\nflags\t\t: sse4_2 avx avx2\n"
    info = probe.cpu_info(machine(tmp_path, files))
    assert info.cores == (quota or len(os.sched_getaffinity(0)))
    assert info.name == "Fast?[31m One"
    assert info.isa == "avx2"


def test_disk_of_the_longest_mount(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "missing"
    root = machine(
        tmp_path / "root",
        {
            "proc/self/mountinfo": f"1 0 8:1 / / rw - ext4 /dev/a rw\n"
            f"2 1 8:2 / {tmp_path} rw shared:1 - xfs /dev/b rw\n"
            f"3 1 8:3 / {tmp_path}x rw - nfs server:/c rw\nnonsense\n"
        },
    )
    info = probe.disk_info(folder, root)
    assert (info.filesystem, info.device) == ("xfs", "/dev/b")
    assert info.free > 0


def test_the_real_machine_answers() -> None:
    assert probe.cpu_info().name
    state = probe.memory_state()
    assert 0 < state.free <= state.total
    assert probe.library_versions()["numpy"] == np.__version__
    assert probe.idle_rss() > 2**20


def test_peak_memory_follows_an_allocation() -> None:
    if not probe.reset_peak_rss():
        pytest.skip("the kernel does not reset the peak")
    before = probe.peak_rss()
    block = np.ones(64 * 2**20, np.uint8)
    assert probe.current_rss() - before > 0.9 * block.nbytes
    del block
    assert probe.peak_rss() - before > 0.9 * 64 * 2**20


def test_fingerprint_identifies_no_single_machine() -> None:
    found = probe.fingerprint()
    assert {"cpu", "cores", "gpu", "driver", "cuda", "numpy", "scipy"} <= found.keys()
    assert os.uname().nodename not in found.values()
    assert found == probe.fingerprint()


def test_fingerprint_sees_the_blas_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = probe.fingerprint()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert probe.fingerprint() != one
