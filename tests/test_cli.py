"""Every command on small matrices; bad input as one line; interruptions that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import pycauset
import pycauset.stress as stress_module
from pycauset import cli, solver
from pycauset.cli import app
from pycauset.errors import DeviceError, StoreFullError, StoreNotFoundError
from pycauset.seeded import SeededStore
from pycauset.storage import create_store, open_store
from pycauset.tiling import Rect


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="pycauset")


def matrix(path: Path) -> np.ndarray[Any, Any]:
    store = open_store(path)
    out = np.zeros(store.shape, store.dtype)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)


@pytest.fixture
def operands(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A (70, 50) as .npy, B (50, 60) as Zarr."""
    a, b = tmp_path / "a.npy", tmp_path / "b.zarr"
    np.save(a, rng.standard_normal((70, 50)))
    with create_store(b, (50, 60), "float64", chunks=(32, 16)) as store:
        store.write(Rect(0, 50, 0, 60), rng.standard_normal((50, 60)))
        store.commit()
    return a, b


def assert_one_line(result: Result, code: int, *parts: str) -> None:
    """Nothing on standard output, one line that contains the parts on standard error, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("pycauset: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


# -- what commands do --------------------------------------------------------------------------------------------------


def test_version_and_help() -> None:
    result = run("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"pycauset {pycauset.__version__}\n"
    result = run("--help")
    assert result.exit_code == 0
    for command in ("audit", "plan", "matmul", "stress", "convert", "info"):
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0
    bare = run()
    assert bare.exit_code == 2
    assert "Commands:" in bare.stderr


def test_audit_prints_a_table_and_json() -> None:
    result = run("audit")
    assert result.exit_code == 0, result.output
    for part in ("CPU", "GPU", "disk", "float64", "FLOP/s", "hardware_profile.json"):
        assert part in result.stdout
    result = run("audit", "--json")
    assert json.loads(result.stdout)["cpu"]["cores"] >= 1


def test_audit_of_a_machine_with_a_gpu() -> None:
    from pycauset.hardware import load_machine, use_probe

    with use_probe(load_machine(Path(__file__).parents[1] / "profiles" / "h200.json")):
        result = run("audit", "--force")
    assert result.exit_code == 0
    assert "NVIDIA H200" in result.stdout
    assert "GPU n" in result.stdout


def test_plan_explains(operands: tuple[Path, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run("plan", *operands, "--memory", "64MB", "--backend", "cpu")
    assert result.exit_code == 0, result.output
    assert "(70, 50) @ (50, 60)" in result.stdout
    assert "route" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["c.zarr", "c.npy"])
def test_matmul(operands: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    a, b = operands
    result = run("matmul", a, b, "-o", tmp_path / name, "--memory", "64MB", "--gpu-memory", "8GB", "--no-progress")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(matrix(tmp_path / name), matrix(a) @ matrix(b), rtol=1e-13, atol=1e-13)
    for part in ("time", "rate", "FLOP/s", "route", name):
        assert part in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.npy", "b.zarr", name])


def test_the_setting_chooses_the_backend_unless_the_option_does(
    operands: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCAUSET_BACKEND", "cpu")
    assert "why: forced" in run("plan", *operands).stdout
    assert "why: the least predicted time" in run("plan", *operands, "--backend", "auto").stdout
    assert "why: forced" in run("plan", *operands).stdout
    monkeypatch.setenv("PYCAUSET_BACKEND", "abacus")
    assert_one_line(run("plan", *operands), 2, "backend is 'abacus'")


def test_matmul_of_transposes(operands: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = operands
    out = tmp_path / "c.zarr"
    result = run("matmul", b, a, "-o", out, "--transpose-a", "--transpose-b")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(matrix(out), matrix(b).T @ matrix(a).T, rtol=1e-13, atol=1e-13)


def test_a_matrix_times_its_own_transpose_is_stored_as_symmetric(operands: tuple[Path, Path], tmp_path: Path) -> None:
    a, out = operands[1], tmp_path / "c.zarr"
    assert run("matmul", a, a, "-o", out, "--transpose-b").exit_code == 0
    assert open_store(out).structure == "symmetric"
    np.testing.assert_allclose(matrix(out), matrix(a) @ matrix(a).T, rtol=1e-13, atol=1e-13)
    assert run("matmul", a, a, "-o", tmp_path / "c.npy", "--transpose-b").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), matrix(out), rtol=1e-13, atol=1e-13)


def test_booleans_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    a = rng.random((40, 30)) < 0.5
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", a.T)
    assert run("matmul", tmp_path / "a.npy", tmp_path / "b.npy", "-o", tmp_path / "c.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), a.astype(int) @ a.T.astype(int))


def test_matmul_with_checksums_and_overwriting(operands: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = operands
    out = tmp_path / "c.zarr"
    assert run("matmul", a, b, "-o", out).exit_code == 0
    assert_one_line(run("matmul", a, b, "-o", out), 2, "c.zarr", "exists", "--overwrite")
    assert run("matmul", a, b, "-o", out, "--overwrite", "--checksum").exit_code == 0
    assert "crc32c" in run("info", out).stdout


def test_convert_and_back(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.standard_normal((130, 90))
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    result = run("convert", tmp_path / "a.npy", tmp_path / "a.zarr", "--chunks", "32x64", "--checksum")
    assert result.exit_code == 0, result.output
    assert open_store(tmp_path / "a.zarr").chunks == (32, 64)
    assert run("convert", tmp_path / "a.zarr", tmp_path / "b.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), values)
    assert run("convert", tmp_path / "f.npy", tmp_path / "c.zarr", "--dtype", "float32").exit_code == 0
    np.testing.assert_array_equal(matrix(tmp_path / "c.zarr"), values.astype("float32"))


def test_convert_to_chunks_of_any_size(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.standard_normal((53, 71)) + 1j
    np.save(tmp_path / "a.npy", values)
    assert run("convert", tmp_path / "a.npy", tmp_path / "a.zarr", "--chunks", "7x11").exit_code == 0
    assert run("convert", tmp_path / "a.zarr", tmp_path / "b.zarr", "--chunks", "13x5").exit_code == 0
    assert run("convert", tmp_path / "b.zarr", tmp_path / "c.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), values)


@pytest.mark.parametrize("structure", ["lower", "upper", "symmetric"])
def test_convert_keeps_structure_and_attributes(tmp_path: Path, rng: np.random.Generator, structure: str) -> None:
    values = rng.standard_normal((40, 40))
    values = {"lower": np.tril(values), "upper": np.triu(values), "symmetric": values + values.T}[structure]
    with create_store(tmp_path / "a.zarr", (40, 40), "float64", chunks=(16, 16), structure=structure) as store:
        store.write(Rect(0, 40, 0, 40), values)
        store.commit(origin="test")
    assert run("convert", tmp_path / "a.zarr", tmp_path / "b.zarr", "--chunks", "8x8").exit_code == 0
    copy = open_store(tmp_path / "b.zarr")
    assert (copy.structure, copy.attributes["origin"]) == (structure, "test")
    np.testing.assert_array_equal(matrix(tmp_path / "b.zarr"), values)
    assert run("convert", tmp_path / "a.zarr", tmp_path / "c.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), values)


@pytest.mark.parametrize("name", ["c.zarr", "c.npy"])
def test_an_interrupted_copy_leaves_nothing(
    operands: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pycauset.evaluate.run", interrupted)
    assert_one_line(run("convert", operands[0], tmp_path / name), 130, "interrupted")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.zarr"]


def test_info(operands: tuple[Path, Path]) -> None:
    result = run("info", operands[1])
    assert result.exit_code == 0
    for part in ("50 × 60", "float64", "32 × 16", "Zarr v3, native", "full"):
        assert part in result.stdout
    assert ".npy" in run("info", operands[0]).stdout


def test_stress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress_module, "_CALIBRATION_SECONDS", 0.01)
    result = run("stress", "--size", "3MB", "--memory", "128MB", "--gpu-memory", "1GB", "--seed", "5", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    for part in ("612 × 612 × 612", "rate", "in-RAM rate", "bytes", "peak memory", "scaled residual", "seed 5"):
        assert part in result.stdout
    assert not list(tmp_path.iterdir())
    assert (
        run("stress", "--size", "1MB", "--memory", "128MB", "--output", tmp_path, "--keep", "--dtype", "float32").exit_code == 0
    )
    assert open_store(tmp_path / "product.zarr").shape == (500, 500)


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress_module, "_CALIBRATION_SECONDS", 0.01)
    monkeypatch.setattr(stress_module, "freivalds", lambda *args, **kwargs: 31.0)
    result = run("stress", "--size", "1MB", "--memory", "128MB")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "the product is wrong" in result.stderr


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["frobnicate"], ["frobnicate"]),
        (["matmul", "a.npy", "b.zarr"], ["--output"]),
        (["matmul", "a.npy", "b.zarr", "-o", "c", "--memory", "2XB"], ["--memory", "2XB", "512MB"]),
        (["matmul", "a.npy", "b.zarr", "-o", "c", "--gpu-memory", "0"], ["--gpu-memory", "'0'"]),
        (["matmul", "a.npy", "b.zarr", "-o", "c", "--backend", "tpu"], ["--backend", "tpu"]),
        (["matmul", "nothing.zarr", "b.zarr", "-o", "c"], ["nothing.zarr"]),
        (["matmul", "b.zarr", "a.npy", "-o", "c"], ["(50, 60)", "(70, 50)", "equal"]),
        (["matmul", "a.npy", "b.zarr", "-o", "nowhere/c"], ["nowhere", "make it first"]),
        (["matmul", "a.npy", "b.zarr", "-o", "c.h5"], [".h5", ".zarr"]),
        (["matmul", "a.npy", "b.zarr", "-o", "c.npy", "--checksum"], ["checksum"]),
        (["matmul", "a.npy", "b.zarr", "-o", "b.zarr", "--overwrite"], ["b.zarr", "shares"]),
        (["plan", "a.npy", "text.txt"], ["text.txt", "neither"]),
        (["convert", "a.npy", "d.zarr", "--chunks", "32"], ["--chunks", "'32'", "1024x1024"]),
        (["convert", "a.npy", "d.zarr", "--chunks", "0x4"], ["--chunks", "0x4"]),
        (["convert", "a.npy", "d.zarr", "--dtype", "text"], ["text"]),
        (["convert", "complex.npy", "d.zarr", "--dtype", "float64"], ["imaginary", "complex.npy"]),
        (["convert", "a.npy", "a.npy", "--overwrite"], ["a.npy", "another name"]),
        (["convert", "a.npy", "b.zarr"], ["b.zarr", "--overwrite"]),
        (["info", "nothing.npy"], ["nothing.npy"]),
        (["stress", "--size", "big"], ["--size", "big"]),
        (["stress", "--op", "lu"], ["lu", "matmul"]),
        (["stress", "--dtype", "int32"], ["int32", "float64"]),
        (["stress", "--seed", "-1"], ["seed", "-1"]),
        (["stress", "--keep"], ["output"]),
    ],
)
def test_bad_input(
    operands: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no matrix")
    np.save("complex.npy", np.ones((2, 2), complex))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_one_line(run(*arguments), 2, *parts)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_truncated_operand(operands: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = operands
    a.write_bytes(a.read_bytes()[:-8])
    assert_one_line(run("matmul", a, b, "-o", tmp_path / "c"), 2, "a.npy", "truncated")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(operands: tuple[Path, Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert_one_line(run("matmul", *operands, "-o", closed / "c"), 2, "closed", "permissions")


def test_an_unwritable_place(operands: tuple[Path, Path]) -> None:
    # /proc refuses everybody, root too
    result = run("matmul", *operands, "-o", "/proc/c.zarr")
    assert result.exit_code in (1, 2)
    assert_one_line(result, result.exit_code, "/proc/c.zarr")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreFullError("the disk is full:\nfree some space"), "pycauset: the disk is full: free some space\n"),
        (StoreNotFoundError("a.npy has vanished"), "pycauset: a.npy has vanished\n"),
        (DeviceError("the GPU burns"), "pycauset: the GPU burns\n"),
        (ZeroDivisionError("oh"), "pycauset: ZeroDivisionError: oh (PYCAUSET_DEBUG=1 shows where)\n"),
    ],
)
def test_failures(
    operands: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(solver, "multiply", fail)
    result = run("matmul", *operands, "-o", tmp_path / "c")
    assert_one_line(result, 1)
    assert result.stderr == line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.zarr"]
    monkeypatch.setenv("PYCAUSET_DEBUG", "1")
    assert run("matmul", *operands, "-o", tmp_path / "c").exception is error


def test_warnings_are_one_line(operands: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def plan(*args: Any, **kwargs: Any) -> Any:
        warnings.simplefilter("default")
        warnings.warn("slower\nthan usual", stacklevel=1)
        raise DeviceError("gone")

    monkeypatch.setattr(solver, "plan", plan)
    result = run("plan", *operands)
    assert result.stderr == "pycauset: warning: slower than usual\npycauset: gone\n"


def test_the_signal_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    run("--version")
    assert signal.getsignal(signal.SIGTERM) is before


# -- other processes ---------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "pycauset"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings for a process that computes with one thread, and a home whose profile was measured like that."""
    settings = {"OPENBLAS_NUM_THREADS": "1", "PYCAUSET_HOME": str(tmp_path_factory.mktemp("home-one-thread"))}
    subprocess.run([*COMMAND, "audit"], capture_output=True, check=True, timeout=60, env={**environment(), **settings})
    return settings


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def has_space(output: Path) -> bool:
    """Whether an output under construction is past its first system call: the reserve in its folder, or its own length."""
    return any(output.iterdir()) if output.is_dir() else output.stat().st_size > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["c.zarr", "c.npy"])
def test_an_interrupted_product_leaves_nothing(
    tmp_path: Path, isolated: Path, one_thread: dict[str, str], number: signal.Signals, code: int, name: str
) -> None:
    n = 3000
    operand = SeededStore(1, (n, n), "float64")
    values = np.empty((n, n))
    operand.read(Rect(0, n, 0, n), values)
    np.save(tmp_path / "a.npy", values)
    before = (tmp_path / "a.npy").read_bytes()
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "matmul", tmp_path / "a.npy", tmp_path / "a.npy", "-o", folder / name, "--memory", "128MB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), **one_thread},  # takes a second, on any machine
        # a shell's background job starts with SIGINT ignored, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    try:
        wait_for(lambda: [p for p in folder.glob(f".{name}.partial*") if has_space(p)], process)
        time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    assert err.count("\n") == 1, err
    assert "no output was left" in err
    assert not list(folder.iterdir())
    assert not [p for p in isolated.rglob("*") if p.is_file()]
    assert (tmp_path / "a.npy").read_bytes() == before


def test_a_reader_that_goes_away() -> None:
    process = subprocess.Popen([*COMMAND, "audit", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) in (0, 1)
    assert process.stderr.read() == b""
    process.stderr.close()


def test_help_needs_no_heavy_imports() -> None:
    code = (
        "import sys; from pycauset.cli import app\n"
        "try: app(['--version'])\n"
        "except SystemExit: pass\n"
        "heavy = {'zarr', 'pydantic', 'scipy', 'cupy', 'psutil', 'rich.progress', 'numpy.random'} & set(sys.modules)\n"
        "assert not heavy - {'numpy.random'}, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
