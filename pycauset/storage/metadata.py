"""The ``zarr.json`` of a native store: what we write, and what of other writers' Zarr v3 arrays we can read as fast.

The subset: one regular grid of chunks, ``bytes`` little-endian, then at most ``crc32c``; booleans as bytes or as packed bits
(``numcodecs.packbits``). Anything else is read through the zarr library.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pycauset.errors import ConfigError, CorruptTileError
from pycauset.storage.base import MIRRORED, STRUCTURES, element_type

__all__ = ["ArrayMetadata", "parse_document"]

_BOOKKEEPING: Final = ("version", "structure", "complete", "generation")
_VERSION: Final = 1


@dataclass
class ArrayMetadata:
    """What a native store needs to know about itself.

    ``shape`` and ``chunks`` have two entries even if the array on disk has one dimension (``ndim == 1``, a column).
    ``ours`` is True when pycauset completed the array, so that every chunk must be there.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int]
    structure: str = "full"
    checksum: bool = False
    packed: bool = False
    separator: str = "/"
    prefix: str = "c"
    ndim: int = 2
    fill: Any = 0
    ours: bool = True
    generation: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def key(self, i: int, j: int) -> str:
        """Chunk (i, j)'s file below the array's folder."""
        name = f"{i}{self.separator}{j}" if self.ndim == 2 else str(i)
        return f"{self.prefix}{self.separator}{name}" if self.prefix else name

    def restructure(self, structure: str) -> None:
        """Let the store have another structure from now on."""
        self.structure, self.fill = structure, fill_value(self.dtype, structure)
        if self.document:
            self.document["fill_value"] = _fill_json(self.fill)

    def dump(self) -> str:
        """The document for ``zarr.json``; another writer's one keeps all it had."""
        document = self.document or _new_document(self)
        foreign = {k: v for k, v in document.get("attributes", {}).items() if k != "pycauset"}
        own = {"version": _VERSION, "structure": self.structure, "complete": self.ours, "generation": self.generation}
        return json.dumps({**document, "attributes": {**foreign, "pycauset": {**own, **self.attributes}}}, indent=2)


def check_attributes(attributes: dict[str, Any]) -> None:
    """Attributes must be JSON and must not use the names that the store keeps for itself."""
    for name, value in attributes.items():
        if name in _BOOKKEEPING:
            raise ConfigError(f"attribute {name!r} is kept by the store itself; use another name")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"attribute {name!r} = {value!r} cannot be stored as JSON: {error}") from None


def fill_value(dtype: np.dtype[Any], structure: str) -> Any:
    """What a chunk that is not there reads as: zero in a zero triangle, elsewhere something nobody takes for data.

    NaN for floating and complex types, the most negative (or largest unsigned) integer; booleans have only False.
    """
    if structure in ("lower", "upper") or dtype.kind == "b":
        return dtype.type(0)
    if dtype.kind in "iu":
        return dtype.type(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)
    return dtype.type(complex(math.nan, math.nan) if dtype.kind == "c" else math.nan)


def _fill_json(value: Any) -> Any:
    if isinstance(value, np.complexfloating):
        return [_fill_json(value.real), _fill_json(value.imag)]
    plain = value.item()
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain


def _fill_parse(value: Any, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "c" and isinstance(value, list) and len(value) == 2:
        parts = np.dtype(f"f{dtype.itemsize // 2}")
        return dtype.type(complex(_fill_parse(value[0], parts), _fill_parse(value[1], parts)))
    if isinstance(value, str):
        if value.startswith("0x") and dtype.kind == "f":  # the bytes of a NaN with a payload
            return np.frombuffer(bytes.fromhex(value[2:]), dtype.newbyteorder(">"))[0].astype(dtype)
        value = float(value)
    return dtype.type(value)


def _new_document(meta: ArrayMetadata) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = []
    if meta.packed:
        codecs.append({"name": "numcodecs.packbits", "configuration": {}})
    codecs.append({"name": "bytes", "configuration": {"endian": "little"}})
    if meta.checksum:
        codecs.append({"name": "crc32c"})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(meta.shape),
        "data_type": meta.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(meta.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_json(meta.fill),
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }


def parse_document(text: str | bytes, where: str) -> ArrayMetadata | None:
    """The metadata of a Zarr v3 array that the native path can read, or ``None`` if it takes the zarr library.

    Raises
    ------
    CorruptTileError
        If the text is not JSON, or its pycauset part contradicts itself.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CorruptTileError(f"{where} is not JSON ({error}); the matrix cannot be opened without it") from None
    if not isinstance(document, dict) or document.get("zarr_format") != 3 or document.get("node_type") != "array":
        return None
    try:
        meta = _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a document of another make, not of our subset
        return None
    if meta is not None and (meta.structure not in STRUCTURES or (meta.structure in MIRRORED and meta.shape[0] != meta.shape[1])):
        raise CorruptTileError(f"{where} names structure {meta.structure!r} for shape {meta.shape}, which cannot be")
    return meta


def _named(entry: Any) -> tuple[str, dict[str, Any]]:
    return (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("configuration") or {})


def _parse(document: dict[str, Any]) -> ArrayMetadata | None:
    grid, grid_options = _named(document["chunk_grid"])
    shape, chunks = [int(n) for n in document["shape"]], [int(n) for n in grid_options["chunk_shape"]]
    encoding, options = _named(document.get("chunk_key_encoding", "default"))
    if grid != "regular" or len(shape) not in (1, 2) or len(chunks) != len(shape) or min(chunks) < 1 or min(shape) < 0:
        return None
    if encoding not in ("default", "v2") or document.get("storage_transformers") or not isinstance(document["data_type"], str):
        return None
    dtype = element_type(document["data_type"], "the array")
    codecs = [_named(codec) for codec in document["codecs"]]
    packed = checksum = False
    if dtype.kind == "b" and codecs and codecs[0][0] == "numcodecs.packbits":
        packed, codecs = True, codecs[1:]
    if codecs and codecs[-1][0] == "crc32c":
        checksum, codecs = True, codecs[:-1]
    if len(codecs) != 1 or codecs[0][0] != "bytes" or codecs[0][1].get("endian", "little") != "little":
        return None
    all_attributes = document.get("attributes", {})
    own = dict(all_attributes.get("pycauset", {}))
    column = len(shape) == 1
    return ArrayMetadata(
        shape=(shape[0], 1 if column else shape[1]),
        dtype=dtype,
        chunks=(chunks[0], 1 if column else chunks[1]),
        structure=str(own.get("structure", "full")),
        checksum=checksum,
        packed=packed,
        separator=options.get("separator", "/" if encoding == "default" else "."),
        prefix="c" if encoding == "default" else "",
        ndim=len(shape),
        fill=_fill_parse(document["fill_value"], dtype),
        ours=bool(own.get("complete", False)),
        generation=int(own.get("generation", 0)),
        attributes={k: v for k, v in own.items() if k not in _BOOKKEEPING},
        document=document,
    )
