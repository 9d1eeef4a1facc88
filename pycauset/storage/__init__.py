"""Where matrices live: RAM, disk, other libraries, functions; all read and written by rectangles.

Importing this package costs a few milliseconds: zarr, h5py and the checksum library come in with the first array that needs them.
"""

from __future__ import annotations

from pycauset.storage.array import ArrayStore
from pycauset.storage.base import STRUCTURES, TileStore, default_chunks, element_type
from pycauset.storage.direct import ALIGNMENT, aligned_empty
from pycauset.storage.foreign import ForeignStore
from pycauset.storage.function import FunctionStore
from pycauset.storage.native import ZarrStore
from pycauset.storage.npy import NpyStore
from pycauset.storage.opening import as_store, create_store, open_store, path_text
from pycauset.storage.scratch import scratch_folder, scratch_store

__all__ = [
    "ALIGNMENT",
    "STRUCTURES",
    "ArrayStore",
    "ForeignStore",
    "FunctionStore",
    "NpyStore",
    "TileStore",
    "ZarrStore",
    "aligned_empty",
    "as_store",
    "create_store",
    "default_chunks",
    "element_type",
    "open_store",
    "path_text",
    "scratch_folder",
    "scratch_store",
]
