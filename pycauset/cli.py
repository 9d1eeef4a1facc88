"""The command line: ``pycauset audit | plan | matmul | stress | convert | info``.

Exit codes: 0 for success, 1 for work that failed, 2 for input that cannot be right, 130 after Ctrl-C, 143 after SIGTERM.
What goes wrong is one line on standard error; ``PYCAUSET_DEBUG=1`` shows the whole traceback instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pycauset import errors
from pycauset.units import format_bytes, format_flops, format_rate, format_seconds, parse_bytes

if TYPE_CHECKING:
    from pycauset.hardware.profile import HardwareProfile
    from pycauset.solver import Factor, SolverPlan
    from pycauset.storage import TileStore

__all__ = ["app", "main"]


class _BadInputError(Exception):
    """A file named on the command line that cannot be opened or created."""


_BAD_INPUT = (
    _BadInputError,
    errors.BackendError,
    errors.ConfigError,
    errors.DtypeError,
    errors.MemoryLimitError,
    errors.OverlapError,
    errors.ShapeError,
)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: whoever stops cleanly on Ctrl-C stops cleanly on this."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM on its way past typer, which would take a KeyboardInterrupt for its own."""


class _Group(TyperGroup):
    """Turns whatever a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped from error

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                code = self._run(args, {**kwargs, "standalone_mode": False})
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, before)
        sys.exit(code)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        try:
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except BrokenPipeError:
            # The reader has seen enough. Nobody may flush into the closed pipe once more when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (KeyboardInterrupt, typer.Abort, _Stopped) as error:
            stopped = error.__cause__ or error
            terminated = isinstance(stopped, _Terminated)
            left = "; ".join(getattr(stopped, "__notes__", ())) or "the inputs are untouched and no output was left"
            _complain(f"{'terminated' if terminated else 'interrupted'}; {left}")
            return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
        except Exception as error:
            if os.environ.get("PYCAUSET_DEBUG", "") not in ("", "0"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error, file=sys.stderr)
                return 2
            if hasattr(error, "format_message"):  # the command line itself is wrong
                _complain(error.format_message())
                return 2
            if isinstance(error, (errors.PycausetError, _BadInputError)):
                _complain(str(error))
                return 2 if isinstance(error, _BAD_INPUT) else 1
            _complain(f"{type(error).__name__}: {error} (PYCAUSET_DEBUG=1 shows where)")
            return 1


def _complain(text: str) -> None:
    print("pycauset: " + " ".join(text.split()), file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: object = None, line: str | None = None
) -> None:
    _complain(f"warning: {message}")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Dense linear algebra for matrices larger than GPU memory and larger than RAM.",
)


def main() -> NoReturn:
    """Run the command line of this process; the entry point ``pycauset``."""
    app(prog_name="pycauset")
    raise SystemExit  # not reached: the group exits


class _Backend(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def _size(text: str) -> int:
    """A size option; typer names the option in front of the complaint."""
    try:
        nbytes = parse_bytes(text)
    except errors.ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if nbytes == 0:
        raise typer.BadParameter(f"{text!r} leaves no memory at all; give a size such as '512MB'")
    return nbytes


def _sides(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise errors.ConfigError(f"--chunks is {text!r}, no pair of sides; write rows x columns, such as 1024x1024")
    return int(sides[0]), int(sides[1])


@contextlib.contextmanager
def _naming_files() -> Iterator[None]:
    """While files are opened and created, whatever is wrong with them is bad input; later it is a failure."""
    try:
        yield
    except errors.StoreFullError:
        raise
    except errors.StoreError as error:
        # The remedy in the words of the command line.
        raise _BadInputError(str(error).replace("pass overwrite=True", "pass --overwrite")) from error


def _forced(backend: _Backend | None) -> contextlib.AbstractContextManager[None]:
    """Inside it the option holds; without one the setting does, and so ``PYCAUSET_BACKEND``."""
    if backend is None:
        return contextlib.nullcontext()
    from pycauset import cuda

    return cuda.force_backend(backend.value)


def _open(path: Path) -> TileStore:
    from pycauset.storage import open_store

    with _naming_files():
        return open_store(path)


_Memory = Annotated[int | None, typer.Option(parser=_size, metavar="SIZE", help="Host memory limit, such as 2GB.")]
_GpuMemory = Annotated[int | None, typer.Option(parser=_size, metavar="SIZE", help="GPU memory limit, such as 8GB.")]
_BackendOption = Annotated[_Backend | None, typer.Option(help="Device that computes.", show_default="the setting")]
_TransposeA = Annotated[bool, typer.Option("--transpose-a", help="Use the transpose of A.")]
_TransposeB = Annotated[bool, typer.Option("--transpose-b", help="Use the transpose of B.")]
_Checksum = Annotated[bool, typer.Option("--checksum", help="Append a crc32c checksum to each chunk.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing matrix.")]
_NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar, on a terminal either.")]
_A = Annotated[Path, typer.Argument(metavar="A", help="Zarr array or .npy file.")]
_B = Annotated[Path, typer.Argument(metavar="B", help="Zarr array or .npy file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from pycauset import __version__

        print(f"pycauset {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Dense linear algebra for matrices larger than GPU memory and larger than RAM."""


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


# -- audit -------------------------------------------------------------------------------------------------------------


@app.command()
def audit(
    force: Annotated[bool, typer.Option("--force", help="Measure again even if a valid profile is cached.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the whole profile as JSON.")] = False,
) -> None:
    """Measure this machine once (a few seconds), and show what was found."""
    from pycauset.devices.audit import load_profile

    profile = load_profile(force=force)
    if json:
        print(profile.model_dump_json(indent=2))
        return
    _print_table(_audit_rows(profile))
    print()
    _print_rates(profile)


def _audit_rows(profile: HardwareProfile) -> list[tuple[str, str]]:
    from pycauset.hardware.cache import profile_path

    cpu, gpu, disk = profile.cpu, profile.gpu, profile.disk
    rows = [
        ("CPU", f"{cpu.name}, {cpu.cores} cores"),
        ("  RAM", format_bytes(profile.ram_total)),
        ("  copy", f"{format_rate(cpu.copy_bandwidth)} one thread, {format_rate(cpu.copy_bandwidth_all)} all"),
        ("  first touch", format_rate(cpu.first_touch_bandwidth)),
        ("GPU", "none" if gpu is None else f"{gpu.name}, compute capability {gpu.compute_capability}"),
    ]
    if gpu is not None:
        rows += [
            ("  memory", format_bytes(gpu.memory)),
            ("  to it", f"{format_rate(gpu.h2d_pinned)} pinned, {format_rate(gpu.h2d_pageable)} pageable"),
            ("  from it", f"{format_rate(gpu.d2h_pinned)} pinned, {format_rate(gpu.d2h_pageable)} pageable"),
            ("  both ways", f"{format_rate(gpu.duplex_pinned)} pinned"),
            ("  launch", format_seconds(gpu.launch_seconds)),
        ]
    rows += [
        ("disk", disk.folder + (" (assumed: it cannot be written)" if disk.assumed else "")),
        ("  read", format_rate(disk.read_bandwidth)),
        ("  write", format_rate(disk.write_bandwidth)),
        ("  direct I/O", "yes" if disk.direct else "no"),
        ("measured", f"{profile.measured_at}, in {format_seconds(profile.audit_seconds)}"),
        ("profile", str(profile_path())),
    ]
    return rows


def _print_rates(profile: HardwareProfile) -> None:
    """Products of n × n matrices: a column for each element type."""
    from pycauset.hardware import DTYPES

    for kind, device in (("CPU", profile.cpu), ("GPU", profile.gpu)):
        if device is None:
            continue
        print(f"{kind + ' n':>10}" + "".join(f"{name:>16}" for name in DTYPES))
        curves = {name: {point.n: point.flops for point in device.gemm[name]} for name in DTYPES}
        for n in sorted({n for curve in curves.values() for n in curve}):
            cells = (format_flops(curves[name][n]) if n in curves[name] else "" for name in DTYPES)
            print(f"{n:>10}" + "".join(f"{cell:>16}" for cell in cells))


# -- plan and matmul ---------------------------------------------------------------------------------------------------


def _factors(a: Path, b: Path, transpose_a: bool, transpose_b: bool) -> tuple[Factor, Factor]:
    from pycauset.solver import Factor

    return Factor(_open(a), "T" if transpose_a else "N"), Factor(_open(b), "T" if transpose_b else "N")


def _solve(a: Factor, b: Factor, memory: int | None, gpu_memory: int | None) -> SolverPlan:
    from pycauset import solver

    return solver.plan("matmul", a, b, out_on_disk=True, memory=memory, gpu_memory=gpu_memory)


@app.command()
def plan(
    a: _A,
    b: Annotated[Path | None, typer.Argument(metavar="[B]", help="Zarr array or .npy file.")] = None,
    op: Annotated[str, typer.Option(help="matmul, cholesky, solve_triangular, solve or inv.")] = "matmul",
    assume_a: Annotated[str, typer.Option(metavar="KIND", help='What A is, for solve and inv: "pos", say.')] = "gen",
    transpose_a: _TransposeA = False,
    transpose_b: _TransposeB = False,
    memory: _Memory = None,
    gpu_memory: _GpuMemory = None,
    backend: _BackendOption = None,
) -> None:
    """Explain how A times B, or another operation, would be computed, without computing it: seconds, bytes, memory, and why."""
    from pycauset.matrix import Matrix
    from pycauset.planning import plan as planned

    first, second = Matrix(_open(a)), None if b is None else Matrix(_open(b))
    first = first.T if transpose_a else first
    second = second.T if transpose_b and second is not None else second
    with _forced(backend):
        found = planned(op, first, second, assume_a=assume_a, out_on_disk=True, memory=memory, gpu_memory=gpu_memory)
        print(found.explain())


@app.command()
def matmul(
    a: _A,
    b: _B,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="C", help="Zarr folder or .npy file for the product.")],
    transpose_a: _TransposeA = False,
    transpose_b: _TransposeB = False,
    memory: _Memory = None,
    gpu_memory: _GpuMemory = None,
    backend: _BackendOption = None,
    checksum: _Checksum = False,
    overwrite: _Overwrite = False,
    no_progress: _NoProgress = False,
) -> None:
    """Multiply A by B under memory limits and write the product to C."""
    from pycauset import solver
    from pycauset.storage import create_store

    first, second = _factors(a, b, transpose_a, transpose_b)
    with _forced(backend):
        solution = _solve(first, second, memory, gpu_memory)
        route = solution.route  # raises, with the numbers, if there is none
        layout = solution.layout
        native: dict[str, Any] = {} if output.suffix == ".npy" else {"chunks": layout.chunks, "structure": layout.structure}
        with _naming_files():
            product = create_store(output, layout.shape, layout.dtype, checksum=checksum, overwrite=overwrite, **native)
        with product:
            begin = perf_counter()
            solver.multiply(
                first,
                second,
                out=product,
                memory=memory,
                gpu_memory=gpu_memory,
                progress=False if no_progress else None,
            )
            seconds = perf_counter() - begin
    rows, cols = layout.shape
    _print_table(
        [
            ("product", f"{output} ({rows} × {cols} {layout.dtype})"),
            ("route", route.name),
            ("time", format_seconds(seconds)),
            ("rate", format_flops(solution.flops / seconds)),
        ]
    )


# -- stress ------------------------------------------------------------------------------------------------------------


@app.command()
def stress(
    size: Annotated[
        int, typer.Option("--size", parser=_size, metavar="SIZE", help="Bytes of one operand.", show_default="1.6GB")
    ] = 1_600_000_000,
    memory: Annotated[
        int | None, typer.Option(parser=_size, metavar="SIZE", help="Host memory limit; a quarter of the size if omitted.")
    ] = None,
    gpu_memory: _GpuMemory = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, complex64 or complex128.")] = "float64",
    op: Annotated[str, typer.Option(help="matmul or cholesky")] = "matmul",
    seed: Annotated[int, typer.Option(help="Of the operands and of the check.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--folder", metavar="FOLDER", help="Folder for the result.", show_default="scratch folder"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the result in the output folder.")] = False,
    backend: _BackendOption = None,
    no_progress: _NoProgress = False,
) -> None:
    """Multiply two generated matrices bigger than the memory limit, or factor one; check the result; show time, bytes, memory."""
    from pycauset.stress import stress as run

    with _forced(backend), _naming_files():
        result = run(
            size,
            memory,
            gpu_memory,
            dtype=dtype,
            op=op,
            seed=seed,
            output=output,
            keep=keep,
            progress=False if no_progress else None,
        )
    _print_table(result.rows())
    if not result.correct:
        found = f"its scaled residual is {result.residual:.3g}"
        _complain(f"the {result.what} is wrong: {found}; please report this with the table above")
    if not result.within_limits:
        _complain("the memory limit was exceeded; please report this with the table above")
    if not result.passed:
        raise typer.Exit(1)


# -- files -------------------------------------------------------------------------------------------------------------


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Zarr array or .npy file.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Zarr folder, or a .npy file by its suffix.")],
    dtype: Annotated[str | None, typer.Option(help="Element type of the copy.")] = None,
    chunks: Annotated[str | None, typer.Option(metavar="ROWSxCOLS", help="Chunks of the copy, such as 1024x1024.")] = None,
    checksum: _Checksum = False,
    overwrite: _Overwrite = False,
    no_progress: _NoProgress = False,
) -> None:
    """Copy a matrix to another format, element type or chunk shape, piece by piece."""
    from pycauset.copying import copy_store

    begin = perf_counter()
    sides = None if chunks is None else _sides(chunks)
    store = _open(source)
    with _naming_files():
        copy_store(
            store,
            target,
            dtype=dtype,
            chunks=sides,
            checksum=checksum,
            overwrite=overwrite,
            progress=False if no_progress else None,
        )
    seconds = perf_counter() - begin
    _print_table(
        [
            ("copied", f"{source} to {target}"),
            ("time", format_seconds(seconds)),
            ("rate", format_rate(store.nbytes / seconds)),
        ]
    )


@app.command()
def info(path: Annotated[Path, typer.Argument(metavar="PATH", help="Zarr array or .npy file.")]) -> None:
    """Show what a matrix on disk is: shape, element type, chunks, structure, properties."""
    from pycauset.storage import NpyStore, ZarrStore

    store = _open(path)
    rows = [
        ("matrix", str(path)),
        ("format", "Zarr v3, native" if isinstance(store, ZarrStore) else ".npy" if isinstance(store, NpyStore) else "Zarr"),
        ("shape", f"{store.shape[0]} × {store.shape[1]}"),
        ("element type", str(store.dtype)),
        ("size", f"{format_bytes(store.nbytes)} ({store.nbytes} bytes) in RAM"),
        ("chunks", f"{store.chunks[0]} × {store.chunks[1]}"),
        ("structure", store.structure),
    ]
    if isinstance(store, ZarrStore):
        rows.append(("checksum", "crc32c" if store.checksum else "none"))
    rows += [(str(name), str(value)) for name, value in sorted(store.attributes.items())]
    _print_table(rows)


if __name__ == "__main__":
    main()
