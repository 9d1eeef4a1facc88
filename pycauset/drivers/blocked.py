"""What the plans and drivers of blocked algorithms on one matrix of square tiles share. Pure arithmetic, no I/O.

A blocked algorithm (Cholesky, triangular solve, inverse, product) keeps a block of ``h × w`` tiles of its result on the
device while panels of final tiles stream past it. Each tile that is not part of the block is dropped explicitly after its
last use in a pass, so that nothing is ever evicted and the bytes of a plan can be counted in closed form.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self, get_args, get_type_hints

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import Rates
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand
from pycauset.hardware import cpu_info
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, ceil_div, round_up

__all__ = [
    "SLOT_ALIGN",
    "BlockedDriver",
    "BlockedPlan",
    "HostLevel",
    "host_level",
    "predict_seconds",
    "slot_bytes",
    "tile_pieces",
    "tile_sides",
]

#: Slots start at multiples of this many bytes, for direct I/O.
SLOT_ALIGN = 4096
#: Pinned bytes that every streamed run takes; what it pins beyond them is paid by the plan that wants it.
_STAGING = 1 << 30


@dataclass(frozen=True, slots=True)
class BlockedPlan:
    """Everything decided about a blocked algorithm before it starts. Bytes and seconds are predictions in closed form.

    All fields are numbers, strings and tuples of them, so that a journal can keep the plan (:meth:`to_json`).

    Attributes
    ----------
    variant : str
        Which order, where a driver has several.
    sizes : tuple of int
        The problem's sizes, as its driver names them.
    dtype : str
        What kernels compute in.
    tile : (int, int)
        Sides of the largest tile of the result.
    block : (int, int)
        Tiles of the result that stay resident together, down and across.
    slots : tuple of int
        Device slots for each operand's tiles.
    keep, host_keep : int
        Tiles of the first operand that stay on the device, or in host slots, once they are there: the first so many in
        the driver's numbering. The host's count includes those that the device keeps.
    upload, download, disk_read, disk_write : int
        Bytes over each link; on a unified device the first two are 0.
    bound : float
        The fewest bytes over the device's link: lower bound plus reading inputs and writing the output once.
    seconds : float
        Predicted time.
    stages : tuple of (str, float)
        Seconds of each stage that overlaps with the others.
    device_bytes, host_bytes : int
        Memory for slots.
    tasks : int
        How many kernels run.
    flops : float
        Real floating-point operations of those kernels.
    """

    unified: bool
    sizes: tuple[int, ...]
    dtype: str
    tile: tuple[int, int]
    block: tuple[int, int]
    slots: tuple[int, ...]
    variant: str = ""
    keep: int = 0
    host_keep: int = 0
    host_slots: int = 0
    host_slot_bytes: int = 0
    upload: int = 0
    download: int = 0
    disk_read: int = 0
    disk_write: int = 0
    bound: float = 0.0
    seconds: float = 0.0
    stages: tuple[tuple[str, float], ...] = ()
    device_bytes: int = 0
    host_bytes: int = 0
    tasks: int = 0
    flops: float = 0.0

    @property
    def link_bytes(self) -> int:
        """Bytes over the link that feeds the device: the disk's on a unified device, PCIe's on a GPU."""
        return self.disk_read + self.disk_write if self.unified else self.upload + self.download

    def to_json(self) -> dict[str, Any]:
        """The plan as an object that ``json`` can write.

        Examples
        --------
        >>> plan = BlockedPlan(True, (8, 8), "float64", (4, 4), (2, 1), (5, 6))
        >>> BlockedPlan.from_json(plan.to_json()) == plan
        True
        """
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The plan that :meth:`to_json` described. Whether a driver can follow it, :meth:`BlockedDriver.check` tells.

        Raises
        ------
        ValueError
            If a field is missing, unknown or of another kind; the message begins with its name.
        """
        hints = get_type_hints(cls)
        fields = data if isinstance(data, dict) else {}
        for name in hints:
            if name not in fields:
                raise ValueError(f"{name} is missing")
            if not _fits(_tuples(fields[name]), hints[name]):
                raise ValueError(f"{name} is {fields[name]!r}")
        for name in fields:
            if name not in hints:
                raise ValueError(f"{name} is unknown")
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type. Counts and bytes are not negative."""
    parts = get_args(kind)
    if parts and parts[-1] is ...:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if parts:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind) and (kind is not int or 0 <= value < 1 << 63)


def _tuples(value: Any) -> Any:
    """Lists as JSON has them, as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


class HostLevel(NamedTuple):
    """Slots of the host level, and how many more would still fit under the limit."""

    slots: int
    slot_bytes: int
    spare: int


def host_level(pieces: Sequence[int], ahead: Sequence[int], limit: int, piece: int) -> HostLevel | None:
    """Host slots for the tiles on their way between stores and a device that is not unified, or None if they do not fit.

    Parameters
    ----------
    pieces : sequence of int
        For each operand the pieces of its largest tile (:func:`tile_pieces`), 0 for operands that need no host slots.
    ahead : sequence of int
        For each operand how many tiles should be on their way at once, if there is room.
    limit, piece : int
        Bytes for all slots, and of one slot.

    Examples
    --------
    >>> host_level((4, 4), (3, 3), 1 << 20, 1 << 16)
    HostLevel(slots=16, slot_bytes=65536, spare=0)
    """
    least = max(pieces, default=0)
    if least == 0:
        return HostLevel(0, 0, 0)
    slots = limit // piece
    # One more than the largest tile takes: a piece of the next one can be on its way while the last ones leave.
    if slots < least + 1:
        return None
    used = min(slots, max(2 * least + 1, sum(count * tiles for count, tiles in zip(pieces, ahead, strict=True))))
    return HostLevel(used, piece, slots - used)


def tile_pieces(rows: int, cols: int, grain: tuple[int, int] | None, piece: int, itemsize: int) -> int:
    """Most pieces that a tile of ``rows × cols`` is cut into: along chunks of ``grain`` (None for an array), then by bytes.

    Examples
    --------
    >>> tile_pieces(512, 512, (256, 256), 256 * 256 * 8, 8), tile_pieces(512, 512, None, 1 << 20, 8)
    (4, 2)
    """
    rows, cols = max(rows, 1), max(cols, 1)
    if grain is None:
        return ceil_div(rows, max(1, piece // (cols * itemsize)))
    across = [ceil_div(side, unit) + (side % unit != 0 and side > unit) for side, unit in zip((rows, cols), grain, strict=True)]
    height, width = min(grain[0], rows), min(grain[1], cols)
    return across[0] * across[1] * ceil_div(height, max(1, piece // (width * itemsize)))


def tile_sides(size: int, unit: int, wanted: Iterable[int]) -> list[int]:
    """Tile sides to try: multiples of ``unit`` near the wanted ones, no longer than the matrix (rounded up to whole units).

    Examples
    --------
    >>> tile_sides(5000, 256, (1000, 2048, 9000))
    [1024, 2048, 5120]
    """
    whole = round_up(max(size, 1), unit)
    return list(dict.fromkeys(min(whole, unit * max(1, round(side / unit))) for side in wanted))


def slot_bytes(rows: int, cols: int, itemsize: int) -> int:
    """Bytes of the slot of a tile."""
    return round_up(rows * cols * itemsize, SLOT_ALIGN)


def predict_seconds(
    rates: Rates,
    *,
    unified: bool,
    compute: float,
    upload: float,
    download: float,
    disk_read: float,
    disk_write: float,
    first: float = 0.0,
    last: float = 0.0,
    stalls: float = 0.0,
    host_bytes: int = 0,
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Seconds of an algorithm whose stages overlap, and the seconds of each stage.

    Parameters
    ----------
    compute : float
        Seconds of all kernels.
    upload, download, disk_read, disk_write : float
        Bytes over each link.
    first, last : float
        Bytes that have to arrive before anything runs, and that go home after everything has.
    stalls : float
        Seconds in which the device waits for data or for the host, whatever overlaps.
    host_bytes : int
        Host slots, which have to be pinned for a GPU.
    """
    stages = (
        ("compute", compute),
        ("upload", 0.0 if unified else upload / rates.upload),
        ("download", 0.0 if unified else download / rates.download),
        ("disk", disk_read / rates.read + disk_write / rates.write),
    )
    seconds = max(stage for _, stage in stages) + stalls
    seconds += (first / rates.read if disk_read else 0.0) + (last / rates.write if disk_write else 0.0)
    if not unified:
        seconds += first / rates.upload + last / rates.download + max(0, host_bytes - _STAGING) / rates.pin
    return seconds, stages


class BlockedDriver(abc.ABC):
    """What the streamer and the solver ask of a driver beside its plan and tasks.

    Attributes
    ----------
    stores : sequence of TileStore
        Every store it reads or writes.
    dtype : numpy.dtype
        What kernels compute in.
    sizes : tuple of int
        As its plans have them.
    variants : tuple of str
        Those that its plans may name.
    plan_type : type
        The class of its plans, to read one back from a journal.
    workspaces : tuple of str
        Its kernels that may need device memory besides tiles (:meth:`Device.workspace_bytes`).
    """

    stores: Sequence[TileStore]
    dtype: np.dtype[Any]
    sizes: tuple[int, ...]
    variants: tuple[str, ...] = ()
    workspaces: tuple[str, ...] = ()
    plan_type: type[BlockedPlan] = BlockedPlan

    def check(self, plan: Any, device: Device, recorded: Iterable[Rect] = ()) -> None:
        """Refuse a plan from a journal that does not fit the operands, the device, or the tiles that are on record.

        Raises
        ------
        ValueError
            The message begins with the name of the field that is wrong.
        """
        for name, fine in self._fitting(plan, device, recorded):
            if not fine:
                raise ValueError(f"{name} is {getattr(plan, name)!r}, which does not fit")

    def _fitting(self, plan: Any, device: Device, recorded: Iterable[Rect]) -> Iterator[tuple[str, bool]]:
        """Names of fields and whether they are right; what comes later may rely on what came before."""
        yield "unified", plan.unified is device.unified
        yield "sizes", plan.sizes == self.sizes
        yield "dtype", plan.dtype == self.dtype.name
        yield "variant", plan.variant in self.variants
        yield "tile", min(plan.tile) > 0
        yield "host_bytes", plan.host_bytes == plan.host_slots * plan.host_slot_bytes
        yield from self._fitting_blocks(plan)
        for operand in self.operands(plan):
            (height, width), store, grain = operand.tile, operand.store, None
            if operand.journal is not None:
                grids = zip(operand.tile, store.chunks, store.shape, strict=True)
                yield "tile", all(side % chunk == 0 or side >= size for side, chunk, size in grids)
                for r0, r1, c0, c1 in recorded:
                    ends = min(r0 + height, store.shape[0]), min(c0 + width, store.shape[1])
                    yield "tile", r0 % height == c0 % width == 0 and (r1, c1) == ends
            elif device.unified or device.reaches(store, operand.dtype):
                continue
            if not device.unified:
                grain = None if has_no_chunks(store) else store.chunks
                row = min(width, grain[1]) if grain else width
                yield "host_slot_bytes", plan.host_slot_bytes >= row * operand.dtype.itemsize
                needed = tile_pieces(height, width, grain, plan.host_slot_bytes, operand.dtype.itemsize)
                yield "host_slots", plan.host_slots >= needed

    @abc.abstractmethod
    def _fitting_blocks(self, plan: Any) -> Iterator[tuple[str, bool]]:
        """The same for blocks and the slots they need."""

    @abc.abstractmethod
    def operands(self, plan: Any) -> list[Operand]:
        """The operands as the streamer takes them."""

    def piece_bytes(self, device: Device) -> int:
        """Bytes of the largest piece that travels between a store and a host slot."""
        largest = SLOT_ALIGN
        for store in self.stores:
            if not device.reaches(store, self.dtype):
                size = min(store.chunks[0], store.shape[0]) * min(store.chunks[1], store.shape[1]) * self.dtype.itemsize
                if has_no_chunks(store):  # any size will do: large enough for long rows, small enough for several threads
                    size = min(max(store.nbytes // 64, 256 << 10), 16 << 20)
                largest = max(largest, min(size, 32 << 20))
        return round_up(largest, SLOT_ALIGN)

    def readers(self, device: Device) -> int:
        """Threads that fetch tiles: two keep a disk busy; staging arrays in RAM for a GPU scales with the cores."""
        cores = cpu_info().cores
        staging = any(has_no_chunks(store) and not device.reaches(store, self.dtype) for store in self.stores)
        return max(2, min(8, cores // 2)) if staging or cores >= 8 else 2

    def writers(self, device: Device) -> int:
        """Threads that write tiles."""
        return max(1, min(4, cpu_info().cores // 4))
