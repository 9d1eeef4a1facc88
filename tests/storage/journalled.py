"""What the journal's tests share: a small ragged matrix in tiles, a journal of it, and looks at what lies on disk."""

from pathlib import Path

import numpy as np

from pycauset.storage import ZarrStore
from pycauset.storage.journal import Journal, open_journal
from pycauset.tiling import Rect

N, CHUNK = 40, 16  # ragged: chunks of 16, 16, 8
TILES = [Rect(r, min(r + 32, N), c, min(c + 32, N)) for r in (0, 32) for c in (0, 32)]
REQUEST = {"operation": "fill", "arguments": {"lower": True}, "operands": {}, "threads": 2}


def begun(path: Path, **options: object) -> tuple[Journal, ZarrStore]:
    """A journal of a new output, begun or taken up."""
    journal = open_journal(path, REQUEST)
    store = journal.new_output((N, N), "float64", chunks=(CHUNK, CHUNK), **options)
    journal.begin({"b": 32}, device="cpu")
    return journal, store


def contents(store: ZarrStore, rect: Rect | None = None) -> np.ndarray:
    rect = rect or Rect(0, *store.shape[:1], 0, store.shape[1])
    out = np.full(rect.shape, np.nan, store.dtype)
    store.read(rect, out)
    return out


def fill(journal: Journal, a: np.ndarray, generation: int = 1, tiles: list[Rect] = TILES) -> None:
    for tile in tiles:
        journal.write(tile, generation, tile, a[tile.slices])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
