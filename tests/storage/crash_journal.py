"""Kills processes that write by a journal, and looks at what is left. A script: it forks, so nothing else may run in it.

``crash_journal.py FOLDER new|in_place steps|random SEED`` prints how often it killed, and fails when any tile is not exactly what
the journal says of it.

steps: a run is killed before and after each system call that changes the disk, one after the other, writes of the journal
also in their middle; then the work is taken up and finished.
random: runs with three writing threads are killed after random times, again and again, until the work is finished.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy  # noqa: F401 - imported once, not by each child

from pycauset.storage import ZarrStore, create_store, open_store
from pycauset.storage import commit as commit_module
from pycauset.storage.journal import Journal, open_journal, operand_identity
from pycauset.tiling import Rect

KILLS = 50
CHUNK, TILE = 8, 16


class Work:
    """Tiles of a matrix, each written ``generations`` times; generation g of a tile has contents of its own."""

    def __init__(self, folder: Path, mode: str, seed: int, n: int, generations: int) -> None:
        self.path, self.mode, self.seed, self.n, self.generations = folder / "a.zarr", mode, seed, n, generations
        ends = [(i, min(i + TILE, n)) for i in range(0, n, TILE)]
        self.tiles = [Rect(*rows, *cols) for rows in ends for cols in ends if mode == "in_place" or cols <= rows]

    def contents(self, tile: Rect, generation: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *tile, generation]).standard_normal(tile.shape)

    def prepare(self) -> None:
        if self.mode == "in_place":
            with create_store(self.path, (self.n, self.n), "float64", chunks=(CHUNK, CHUNK)) as store:
                for tile in self.tiles:
                    store.write(tile, self.contents(tile, 0))
                store.commit()

    def open(self) -> tuple[Journal, ZarrStore | None]:
        request = {"operation": "shuffle", "arguments": {"seed": self.seed}, "operands": {}, "threads": 1}
        if self.mode == "in_place":
            given = open_store(self.path, unfinished=True)
            journal = open_journal(self.path, {**request, "operands": {"A": operand_identity(given)}})
            return journal, None if journal.finished else journal.in_place(given)
        journal = open_journal(self.path, request)
        if journal.finished:
            return journal, None
        return journal, journal.new_output((self.n, self.n), "float64", chunks=(CHUNK, CHUNK), structure="lower")

    def check(self, store: ZarrStore, tile: Rect, generation: int) -> None:
        if generation == 0 and self.mode == "new":
            return
        found = np.full(tile.shape, np.nan)
        store.read(tile, found)
        np.testing.assert_array_equal(found, self.expected(tile, generation), f"{tile} generation {generation}")

    def expected(self, tile: Rect, generation: int) -> np.ndarray:
        """A lower matrix drops chunks above the diagonal."""
        found = self.contents(tile, generation)
        if self.mode == "new" and tile.r0 == tile.c0:
            found[:CHUNK, CHUNK:] = 0
        return found

    def run(self, threads: int) -> None:
        """All that is left to do, in a fixed order."""
        journal, store = self.open()
        if store is None:
            return
        with journal:
            for tile in self.tiles:
                self.check(store, tile, journal.generation(tile))
            journal.begin({"order": "rows"})
            assert journal.plan == {"order": "rows"}
            with ThreadPoolExecutor(threads) as pool:
                for generation in range(1, self.generations + 1):
                    left = [tile for tile in self.tiles if journal.generation(tile) < generation]
                    list(pool.map(lambda tile, g=generation: self.write(journal, store, tile, g), left))
            journal.finish()

    def write(self, journal: Journal, store: ZarrStore, tile: Rect, generation: int) -> None:
        self.check(store, tile, generation - 1)  # perhaps still on its way
        data = self.contents(tile, generation)
        middle = min(tile.r0 + CHUNK, tile.r1)
        for r0, r1 in ((tile.r0, middle), (middle, tile.r1)):
            if r0 < r1:
                journal.write(tile, generation, Rect(r0, r1, tile.c0, tile.c1), data[r0 - tile.r0 : r1 - tile.r0])

    def finished(self) -> bool:
        """Whether a run has come to its very end: then another one would be a new one."""
        if (self.path.parent / "a.zarr.journal").exists() or not (self.path / "zarr.json").exists():
            return False
        store = open_store(self.path)
        assert isinstance(store, ZarrStore)
        return store.metadata_generation == (2 if self.mode == "in_place" else 1)

    def check_finished(self) -> None:
        store = open_store(self.path)
        for tile in self.tiles:
            self.check(store, tile, self.generations)
        assert [p.name for p in self.path.parent.iterdir()] == [self.path.name], list(self.path.parent.rglob("*"))
        stored = sum(1 for _ in store.stored_chunks(Rect(0, self.n, 0, self.n)))
        files = [p for p in self.path.rglob("*") if p.is_file()]
        assert len(files) == stored + 1, files


class Fuse:
    """Kills this process at one of the system calls that change the disk."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        for name in ("open", "rename", "replace", "unlink", "fsync", "mkdir", "ftruncate", "pwritev", "write", "rmdir"):
            setattr(os, name, self.guard(name, getattr(os, name)))

    def tick(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def guard(self, name: str, call):
        def guarded(*args, **options):
            if name == "open" and not args[1] & os.O_CREAT:
                return call(*args, **options)
            self.tick()
            if name == "write" and self.count == self.at:
                call(args[0], args[1][: len(args[1]) // 2])
                self.tick()
            elif name == "write":
                self.count += 1
            done = call(*args, **options)
            self.tick()
            return done

        return guarded


def forked(action) -> int:
    """Run in a child; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> bool:
    """Whether a child came to its end rather than being killed; fails if it met an error."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "a run failed"
    return True


def every_step(folder: Path, mode: str, seed: int) -> int:
    kills, step = 0, seed % 2  # every second one, to be done sooner; the seed is another one each time
    while True:
        place = folder / str(step)
        place.mkdir()
        work = Work(place, mode, seed + step, 20 if mode == "new" else 16, 2)
        work.prepare()

        def act(work: Work = work, step: int = step) -> None:
            Fuse(step)
            work.run(1)

        done = ended(forked(act))
        if not done and not work.finished():
            work.run(1)
        work.check_finished()
        shutil.rmtree(place)
        if done:
            return kills
        kills += 1
        step += 2


def random_kills(folder: Path, mode: str, seed: int) -> int:
    rng = np.random.default_rng(seed)
    kills = matrices = 0
    while kills < KILLS:
        place = folder / str(matrices)
        place.mkdir()
        work = Work(place, mode, seed + matrices, 60, 3)
        work.prepare()
        while True:
            pid = forked(lambda work=work: work.run(3))
            until = time.monotonic() + 5
            while not (place / "a.zarr.journal").exists() and time.monotonic() < until:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.08))
            os.kill(pid, signal.SIGKILL)
            if ended(pid):
                break
            kills += 1
            if work.finished():
                break
            if rng.random() < 0.3:  # two kills in a row are met as well as one
                journal, store = work.open()
                with journal:
                    for tile in work.tiles if store is not None else ():
                        work.check(store, tile, journal.generation(tile))
                if store is None:
                    break
        work.check_finished()
        shutil.rmtree(place)
        matrices += 1
    return kills


if __name__ == "__main__":
    where, mode, what, seed = sys.argv[1:]
    commit_module.COMMIT_SECONDS = 0.0 if what == "steps" else 0.005
    kill = every_step if what == "steps" else random_kills
    print(kill(Path(where), mode, int(seed)))
