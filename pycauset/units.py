"""Sizes, rates and times between people and numbers: ``"8GB"`` <-> bytes, seconds -> ``"2 min 03 s"``."""

from __future__ import annotations

import numbers
import re
from typing import Final

from pycauset.errors import ConfigError

__all__ = ["format_bytes", "format_flops", "format_rate", "format_seconds", "parse_bytes"]

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgtp")},
    **{p: 1000 ** (i + 1) for i, p in enumerate("kmgtp")},
    **{f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgtp")},
}
_PATTERN: Final = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(size: int | float | str) -> int:
    """Turn ``"8GB"``, ``"512 MiB"``, ``2e9`` or ``4096`` into a number of bytes.

    ``GB`` is 10⁹ bytes and ``GiB`` is 2³⁰ bytes, as the SI and IEC define them.

    Raises
    ------
    ConfigError
        If the text is no size, or the size is negative, not finite, or no whole number of bytes.

    Examples
    --------
    >>> parse_bytes("8GB"), parse_bytes("1.5 KiB"), parse_bytes(4096)
    (8000000000, 1536, 4096)
    """
    value: float
    unit = ""
    if isinstance(size, str):
        match = _PATTERN.fullmatch(size)
        if match is None or match[2].lower() not in _UNITS:
            raise ConfigError(f"{size!r} is not a size; write bytes as a number, or text such as '512MB', '8GB' or '4GiB'")
        unit = match[2].lower()
        value = float(match[1]) * _UNITS[unit]
    elif isinstance(size, bool) or not isinstance(size, numbers.Real):
        raise ConfigError(f"{size!r} is not a size; write bytes as a number, or text such as '512MB'")
    else:
        value = size
    if not 0 <= value < 2**63:
        raise ConfigError(f"{size!r} is not a size between 0 and 2**63 bytes")
    if unit in ("", "b") and value != int(value):
        raise ConfigError(f"{size!r} is not a whole number of bytes; write an integer, or text with a unit such as '1.5GB'")
    return round(value)


def _scaled(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            digits = (
                0 if prefix == "" and float(value).is_integer() else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            )
            return f"{value:.{digits}f} {prefix}{unit}"
        value /= 1000
    return f"{value:,.1f} P{unit}"


def format_bytes(nbytes: float) -> str:
    """``format_bytes(1.5e9) == '1.50 GB'``: three significant digits, decimal units."""
    return _scaled(nbytes, "B")


def format_rate(bytes_per_second: float) -> str:
    """``format_rate(2.5e9) == '2.50 GB/s'``."""
    return _scaled(bytes_per_second, "B/s")


def format_flops(flops_per_second: float) -> str:
    """``format_flops(5.5e13) == '55.0 TFLOP/s'``."""
    return _scaled(flops_per_second, "FLOP/s")


def format_seconds(seconds: float) -> str:
    """``format_seconds(123) == '2 min 03 s'``; small times in ms or µs."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours / 24:,.1f} days"
