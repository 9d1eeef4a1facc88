"""Limits of the container: cgroup v1 and v2 files below ``/proc`` and ``/sys``, read for `pycauset.hardware.probe`.

A limit on any ancestor binds, so every folder from the process's own up to the mount point counts. Inside a container
the path in ``/proc/self/cgroup`` may be the host's and not exist; the mount point is then the container's own group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["cpu_quota", "memory_limits"]

_UNLIMITED: Final = 2**60  # version 1 writes "no limit" as a number near 2**63


def memory_limits(root: Path) -> list[tuple[int, int]]:
    """Pairs of (limit, used) bytes, one for each cgroup that limits this process's memory.

    Used memory leaves out file pages, which the kernel drops before it denies anything.

    Parameters
    ----------
    root : Path
        ``/``, or a folder of made-up files.
    """
    found = []
    for folder in _folders(root, "memory"):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limit = min((x for x in limits if x is not None and x < _UNLIMITED), default=None)
        if limit is None:
            continue
        used = _number(folder / "memory.current")
        if used is None:
            used = _number(folder / "memory.usage_in_bytes") or 0
        statistics = _table(folder / "memory.stat")
        pages = sum(statistics.get(f"total_{name}", statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
        found.append((limit, max(0, used - pages)))
    return found


def cpu_quota(root: Path) -> float | None:
    """Processors that the cgroups allow at once (2.5 for 250 ms in every 100 ms), or None without a limit."""
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _words(folder / "cpu.max") or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[0]) > 0 and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders, innermost first, whose files limit this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controller, root / "sys/fs/cgroup" / controllers]
        else:
            continue
        inner = [part for part in PurePosixPath(path).parts if part not in ("/", "..", ".")]
        for mount in dict.fromkeys(mounts):
            for depth in range(len(inner), -1, -1):
                folder = mount.joinpath(*inner[:depth])
                if folder.is_dir():
                    yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}
