"""What every benchmark prints: machine, versions, date, command, each bar with its baseline, medians, spread and PASS or FAIL."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # a checkout that is not installed
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True, slots=True)
class Sample:
    """Repeated measurements of one thing, in ``unit`` (seconds unless said otherwise)."""

    values: tuple[float, ...]
    unit: str = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        scale, unit = (1.0, self.unit)
        if unit == "s" and self.median < 1e-3:
            scale, unit = 1e6, "µs"
        elif unit == "s" and self.median < 1:
            scale, unit = 1e3, "ms"
        low, high = min(self.values) * scale, max(self.values) * scale
        return f"{self.median * scale:.4g} {unit} (median of {len(self.values)}; {low:.4g} to {high:.4g})"


def alternate(calls: dict[str, Callable[[], float | None]], repeats: int) -> dict[str, Sample]:
    """Call each in turn, ``repeats`` times round, so that drift of the machine hits all alike.

    A call that returns a number has measured itself; otherwise its wall time counts.
    """
    values: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            own = call()
            values[name].append(time.perf_counter() - start if own is None else own)
    return {name: Sample(tuple(found)) for name, found in values.items()}


class Report:
    """Lines on the terminal, and in ``--output`` as well; remembers whether a bar was missed."""

    def __init__(
        self,
        title: str,
        options: argparse.Namespace,
        *,
        folder: Path | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        self.smoke = bool(options.smoke)
        self._output: Path | None = options.output
        self._lines: list[str] = []
        self._missed = self._bars = 0
        self.line(f"# {title}")
        self._machine(folder, packages)

    def line(self, text: str = "") -> None:
        print(text, flush=True)
        self._lines.append(text)

    def figure(self, name: str, value: object) -> None:
        """One labelled figure."""
        self.line(f"{name:<34} {value}")

    def bar(
        self, name: str, value: float, limit: float, *, at_least: bool, unit: str = "", digits: int = 3, exact: bool = False
    ) -> bool:
        """Compare ``value`` with its bar. ``exact``: it counts something, so that it holds at smoke size too."""
        met = value >= limit if at_least else value <= limit
        self._bars += 1
        self._missed += not met and (exact or not self.smoke)
        sign = "≥" if at_least else "≤"
        verdict = "PASS" if met else "FAIL"
        note = " (smoke size: says nothing about speed)" if self.smoke and not exact else ""
        self.line(f"{name:<34} {value:.{digits}f}{unit}   bar {sign} {limit:g}{unit}   {verdict}{note}")
        return met

    def finish(self) -> int:
        """Write ``--output``; the exit status: 1 if a bar was missed that means something at this size."""
        if self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._output.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        return 1 if self._missed else 0

    def _machine(self, folder: Path | None, packages: Sequence[str]) -> None:
        from pycauset.hardware import probe
        from pycauset.units import format_bytes

        cpu, memory, gpu = probe.cpu_info(), probe.memory_state(), probe.gpu_info()
        self.figure("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
        self.figure("command", command_line())
        self.figure("CPU", f"{cpu.name}, {cpu.cores} cores, {cpu.isa}")
        self.figure("RAM", f"{format_bytes(memory.total)}, {format_bytes(memory.free)} free")
        if gpu is not None:
            versions = f"driver {gpu.driver}, CUDA {gpu.runtime}"
            self.figure("GPU", f"{gpu.name}, {format_bytes(gpu.memory)}, {gpu.multiprocessors} multiprocessors, {versions}")
        if folder is not None:
            disk = probe.disk_info(folder)
            self.figure("disk", f"{disk.filesystem}, {format_bytes(disk.free)} free")
        found = dict(probe.library_versions())
        for package in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[package] = metadata.version(package)
        self.figure("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
        self.line()


def command_line() -> str:
    """How this script was called, without this machine's folders."""
    script = Path(sys.argv[0])
    with contextlib.suppress(ValueError):
        script = script.resolve().relative_to(ROOT)
    return shlex.join(["python", str(script), *(hide_folder(argument) for argument in sys.argv[1:])])


def hide_folder(argument: str) -> str:
    """A path argument by its last part: which folder a machine keeps its files in is nobody's business."""
    return Path(argument).name if argument.startswith("/") else argument


def parser(description: str | None, **kwargs: Any) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    summary = (description or "").strip().splitlines()[0]
    made = argparse.ArgumentParser(description=summary, **kwargs)
    made.add_argument("--smoke", action="store_true", help="a tiny size that runs in a second: tests the script, not the machine")
    made.add_argument("--output", type=Path, metavar="FILE", help="write the report to this file as well")
    return made


def add_folder(made: argparse.ArgumentParser) -> None:
    made.add_argument("--folder", type=Path, help="where matrices on disk go (removed afterwards); default: the scratch folder")


@contextlib.contextmanager
def work_folder(chosen: Path | None) -> Iterator[Path]:
    """A private folder on the disk under test, removed at the end."""
    from pycauset import config

    parent = chosen or config.get("scratch")
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pycauset-benchmark-", dir=parent) as folder:
        yield Path(folder)


def gpu_or_exit(report: Report) -> Any:
    """The CuPy module; without a GPU the report ends here, with status 2 (0 at smoke size)."""
    from pycauset.hardware import probe

    problem = probe.gpu_problem()
    if problem is None:
        return probe.import_cupy()
    report.line(f"not run: {problem}")
    report.finish()
    raise SystemExit(0 if report.smoke else 2)


# -- operands ---------------------------------------------------------------------------------------------------------


def write_operand(
    path: Path,
    rows: int,
    cols: int,
    *,
    seed: int,
    dtype: str = "float64",
    chunks: tuple[int, int] | None = None,
    threads: int = 4,
) -> None:
    """Make a native matrix on disk: a few random chunks reused in turn, each with a scale of its own.

    As fast as the disk. No two neighbours are equal; each row can be computed again by `operand_rows`.
    """
    import numpy as np

    from pycauset.storage import aligned_empty, create_store
    from pycauset.tiling import Rect

    store = create_store(path, (rows, cols), dtype, chunks=chunks)
    height, width = store.chunks
    noise = _noise(seed, height, width, dtype)
    across = -(-cols // width)
    local = threading.local()

    def write(corner: tuple[int, int]) -> None:
        r, c = corner
        if not hasattr(local, "buffer"):
            local.buffer = aligned_empty((height, width), dtype)
        shape = (min(height, rows - r), min(width, cols - c))
        tile = local.buffer if shape == (height, width) else np.empty(shape, dtype)
        number = (r // height) * across + c // width
        np.multiply(noise[number % len(noise)][: shape[0], : shape[1]], _scale(number), out=tile)
        store.write(Rect(r, r + shape[0], c, c + shape[1]), tile)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(write, [(r, c) for r in range(0, rows, height) for c in range(0, cols, width)]):
            pass
    store.commit()
    store.close()


def operand_rows(rows: Sequence[int], n_cols: int, *, seed: int, dtype: str, chunks: tuple[int, int]) -> Any:
    """Rows of the matrix that `write_operand` wrote, computed and not read."""
    import numpy as np

    height, width = chunks
    noise = _noise(seed, height, width, dtype)
    across = -(-n_cols // width)
    out = np.empty((len(rows), n_cols), dtype)
    for index, row in enumerate(rows):
        for c in range(0, n_cols, width):
            cols = min(width, n_cols - c)
            number = (row // height) * across + c // width
            out[index, c : c + cols] = noise[number % len(noise)][row % height, :cols] * _scale(number)
    return out


def _noise(seed: int, height: int, width: int, dtype: str) -> list[Any]:
    import numpy as np

    rng = np.random.default_rng(seed)
    return [(rng.random((height, width), np.float64) - 0.5).astype(dtype) for _ in range(3)]


def _scale(number: int) -> float:
    return 1.0 + (number % 97) / 97


#: Of the eigenvalues ``i^-0.35`` the 8 largest take SciPy's ``eigsh`` some 50 products at tol = 1e-8.
POWER = -0.35


def power_law_parts(n: int) -> tuple[Any, Any, Any, float]:
    """Eigenvalues λ, the vector u of the reflection ``H = 1 - 2 u uᵀ``, ``w = λ u`` and ``uᵀ w``: what ``H λ H`` is made of."""
    import numpy as np

    values = np.arange(1, n + 1) ** POWER
    u = np.random.default_rng(5).standard_normal(n)
    u /= np.linalg.norm(u)
    w = values * u
    return values, u, w, float(u @ w)


def power_law_matrix(n: int) -> Callable[[Any, Any], Any]:
    """``f(rows, cols)``, elements of a symmetric matrix with the eigenvalues ``i^POWER``: a diagonal between two reflections."""
    import numpy as np

    values, u, w, middle = power_law_parts(n)

    def element(rows: Any, cols: Any) -> Any:
        tile = 4 * middle * np.outer(u[rows], u[cols]) - 2 * (np.outer(u[rows], w[cols]) + np.outer(w[rows], u[cols]))
        return tile + np.where(rows[:, None] == cols[None, :], values[rows][:, None], 0.0)

    return element


def power_law_strips(cupy: Any, n: int) -> Iterator[tuple[int, Any]]:
    """The same matrix on the GPU, a few rows at a time, each strip with its first row."""
    values, u, w, middle = (cupy.asarray(part) for part in power_law_parts(n))
    height = max(1, (256 << 20) // (8 * n))
    for r in range(0, n, height):
        rows = slice(r, min(r + height, n))
        strip = cupy.outer(4 * middle * u[rows] - 2 * w[rows], u) - cupy.outer(2 * u[rows], w)
        index = cupy.arange(rows.start, rows.stop)
        strip[index - r, index] += values[rows]
        yield r, strip


def drop_cache(path: Path) -> None:
    """Write the files below ``path`` to disk and drop them from the page cache: the next read comes from the disk."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


# -- the product under test ---------------------------------------------------------------------------------------------


def product(a: Any, b: Any, out: Any, *, memory: Any = None, gpu_memory: Any = None) -> None:
    """``out = a b`` as the solver computes it: paths name matrices on disk (``out`` is made anew), arrays lie in RAM."""
    from pycauset.solver import Factor, multiply
    from pycauset.storage import as_store, create_store, open_store

    left, right = (Factor(open_store(x) if isinstance(x, Path) else as_store(x)) for x in (a, b))
    if isinstance(out, Path):
        target = create_store(out, (left.shape[0], right.shape[1]), left.dtype, overwrite=True)
    else:
        target = as_store(out)
    multiply(left, right, out=target, memory=memory, gpu_memory=gpu_memory, progress=False)


def warm_up() -> None:
    """Measure the machine or load its profile, and pay for lazy imports, before anything is timed."""
    import numpy as np

    from pycauset.devices.audit import load_profile

    load_profile()
    product(np.ones((600, 600)), np.ones((600, 600)), np.ones((600, 600)))


def load(path: Path) -> Any:
    """A matrix on disk as an array."""
    import numpy as np

    from pycauset.storage import open_store
    from pycauset.tiling import Rect

    store = open_store(path)
    out = np.empty(store.shape, store.dtype)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


# -- checks -----------------------------------------------------------------------------------------------------------


def sampled_error(found: Any, rows_of_a: Any, b: Any) -> float:
    """Largest ``|found − A_rows·B|`` relative to ``|A_rows|·|B|``: what rounding leaves is some 1e-15 in float64."""
    import numpy as np

    exact = rows_of_a @ b
    scale = np.abs(rows_of_a) @ np.abs(b)
    return float(np.max(np.abs(found - exact) / np.maximum(scale, np.finfo(np.float64).tiny)))


def child(arguments: Sequence[str], *, timeout: float = 3600, environment: dict[str, str] | None = None) -> str:
    """Run this script again with ``arguments``; its output. The checkout is on the child's path."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, sys.argv[0], *arguments],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
