"""Kills and power failures: every tile is exactly what the journal says of it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycauset.storage import ZarrStore, create_store, open_store
from pycauset.storage import commit as commit_module
from pycauset.storage import journalfile as journalfile_module
from pycauset.storage import native as native_module
from pycauset.storage import staging as staging_module
from pycauset.storage.journal import open_journal
from pycauset.tiling import Rect
from tests.storage.journalled import CHUNK, REQUEST, TILES, N, begun, contents, fill, names

# ---- crashes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: the tests pretend that the disk fails, it need not take part."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pycauset-test-", dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


class PowerFailure(BaseException):
    """The machine stops here."""


class Disk:
    """Knows what a power failure may undo: files and names that were not synced, the end of the journal, renames."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, rng: np.random.Generator) -> None:
        self.at, self.count, self.rng = at, 0, rng
        self.files: set[str] = set()
        self.names: set[str] = set()
        self.renames: list[tuple[str, str, bytes | None]] = []
        self.down = False
        for module, name in (
            (staging_module, "stage_chunk"),
            (commit_module, "_sync"),
            (commit_module, "_rename"),
            (journalfile_module, "_append"),
        ):
            real = getattr(module, name)
            patch.setattr(module, name, lambda *args, _real=real, _name=name, **o: self.call(_name, _real, *args, **o))
        self.lock = threading.Lock()

    def call(self, name: str, real, *args, **options):
        with self.lock:
            if self.down or self.count == self.at:
                self.down = True
                if name == "_append":
                    os.write(args[0], args[1][: int(self.rng.integers(0, len(args[1])))])
                raise PowerFailure
            self.count += 1
            old = Path(args[1]).read_bytes() if name == "_rename" and Path(args[1]).exists() else None
            done = real(*args, **options)
            if name == "stage_chunk":
                self.files.add(args[0])
                self.names.add(args[0])
            elif name == "_rename":
                self.renames.append((args[0], args[1], old))
            elif name == "_sync":
                self.files.discard(args[0])
                self.names = {path for path in self.names if os.path.dirname(path) != args[0]}
                self.renames = [r for r in self.renames if os.path.dirname(r[0]) != args[0]]
            return done

    def fail(self) -> None:
        """Lose some of what may be lost."""
        for _ in range(int(self.rng.integers(0, len(self.renames) + 1))):
            staged, final, old = self.renames.pop()
            shutil.copyfile(final, staged)
            if old is None:
                os.unlink(final)
            else:
                Path(final).write_bytes(old)
        for path in self.files | self.names:
            if os.path.exists(path):
                if path in self.names and self.rng.random() < 0.5:
                    os.unlink(path)
                elif path in self.files:
                    os.truncate(path, int(self.rng.integers(0, os.path.getsize(path))))


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_after_a_power_failure_each_tile_is_what_the_journal_says(folder: Path, in_place: bool) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    failures = 0
    for trial in range(30):
        path = folder / f"{trial}.zarr"
        versions = rng.standard_normal((4, N, N))
        if in_place:
            with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
                made.write(Rect(0, N, 0, N), versions[0])
                made.commit()
        for at in (int(rng.integers(0, 130)), int(rng.integers(0, 60)), None):
            with pytest.MonkeyPatch.context() as patch:
                journal = open_journal(path, REQUEST)
                if in_place:
                    store = journal.in_place(open_store(path, unfinished=True))
                else:
                    store = journal.new_output((N, N), "float64", chunks=(CHUNK, CHUNK))
                for tile in TILES:
                    generation = journal.generation(tile)
                    if generation or in_place:
                        np.testing.assert_array_equal(
                            contents(store, tile), versions[generation][tile.slices], f"seed {seed}, trial {trial}"
                        )
                journal.begin({})
                if at is None:
                    break
                disk = Disk(patch, at, rng)
                with contextlib.suppress(PowerFailure):
                    for generation in (1, 2, 3):
                        for tile in TILES:
                            if journal.generation(tile) < generation:
                                journal.write(tile, generation, tile, versions[generation][tile.slices])
                                if rng.random() < 0.5:
                                    journal.flush()
                failures += disk.down
                store.suspend()
                journal._file.close()
                disk.fail()
        for generation in (1, 2, 3):
            for tile in TILES:
                if journal.generation(tile) < generation:
                    journal.write(tile, generation, tile, versions[generation][tile.slices])
        journal.finish()
        np.testing.assert_array_equal(contents(store), versions[3])
        assert names(folder) == [f"{trial}.zarr"]
        assert sum(p.is_file() for p in path.rglob("*")) == 10
        shutil.rmtree(path)
    assert failures > 15


@pytest.mark.parametrize("what", ["steps", "random"])
@pytest.mark.parametrize("mode", ["new", "in_place"])
def test_killed_at_any_moment_each_tile_is_what_the_journal_says(folder: Path, mode: str, what: str) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OPENBLAS_NUM_THREADS": "1"}
    script = Path(__file__).with_name("crash_journal.py")
    done = subprocess.run(
        [sys.executable, script, folder, mode, what, str(seed)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-4000:]}"
    assert int(done.stdout) >= 50


@pytest.mark.parametrize("pending", ["whole", "damaged"])
def test_a_pending_chunk_takes_its_place_only_if_it_is_whole(
    path: Path, rng: np.random.Generator, pending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rng.standard_normal((N, N))
    journal, _ = begun(path)
    fill(journal, -a, tiles=TILES[1:2])
    journal.flush()

    def killed(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "_rename", killed)
        fill(journal, a, generation=2, tiles=TILES[:2])
        with pytest.raises(KeyboardInterrupt):
            journal.flush()
    journal.suspend()
    waiting = sorted(path.parent.rglob("*.g2.pending"))
    assert len(waiting) == 6
    if pending == "damaged":
        data = bytearray(waiting[2].read_bytes())  # chunk (0, 2), of the second tile
        data[int(rng.integers(0, len(data)))] ^= 1
        waiting[2].write_bytes(data)
    journal, store = begun(path)
    assert [journal.generation(tile) for tile in TILES[:2]] == [2, 2 if pending == "whole" else 0]
    np.testing.assert_array_equal(contents(store, TILES[0]), a[TILES[0].slices])
    assert not list(path.parent.rglob("*.pending"))
    journal.discard()


@pytest.mark.parametrize("at", ["metadata", "trim"])
def test_a_triangle_is_dropped_only_when_the_work_is_finished(
    path: Path, rng: np.random.Generator, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rng.standard_normal((N, N))
    with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
        made.write(Rect(0, N, 0, N), -a)
        made.commit()
    tiles = [TILES[0], TILES[2], TILES[3]]  # the first one has a chunk above the diagonal

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for end in ("killed", "whole"):
        with open_journal(path, REQUEST) as journal:
            if journal.finished:
                assert at == "trim"
                break
            store = journal.in_place(open_store(path, unfinished=True))
            journal.begin({})
            if end == "killed":
                fill(journal, np.tril(a), tiles=tiles)
            assert journal.resumed == (end == "whole")
            journal.flush()
            assert journal.generations() == dict.fromkeys(tiles, 1)
            store.restructure("lower")
            if end == "whole":
                journal.finish()
                break
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(native_module, "write_durably", killed) if at == "metadata" else patch.setattr(
                    ZarrStore, "trim", killed
                )
                journal.finish()
    opened = open_store(path)
    assert opened.structure == "lower"
    np.testing.assert_array_equal(contents(opened), np.tril(a))
    assert names(path.parent) == ["a.zarr"]
    assert sum(p.is_file() for p in path.rglob("*")) == 7
