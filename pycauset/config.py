"""Settings: one table of name, environment variable, unit, default and meaning; nobody needs to touch any of them.

A value comes from the innermost ``with settings(...)`` block, else from ``configure(...)``, else from the environment,
else from the default. ``docs/parameters/settings.md`` is generated from this table's contents and tested against it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pycauset.errors import ConfigError
from pycauset.units import parse_bytes

__all__ = ["SETTINGS", "Setting", "configure", "get", "settings"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. ``parse`` turns the user's value or the environment's text into the value that code uses."""

    name: str
    env: str
    unit: str
    default: Any
    scope: str
    meaning: str
    parse: Callable[[Any], Any]


def _bytes_or_none(value: Any) -> int | None:
    return None if value is None or (isinstance(value, str) and value in ("", "auto")) else parse_bytes(value)


def _backend(value: Any) -> str:
    if value not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"backend is {value!r}; it must be 'auto', 'cpu' or 'gpu'")
    return str(value)


def _progress(value: Any) -> bool | None:
    if value in (None, "", "auto"):
        return None
    if isinstance(value, str):
        if value.lower() not in ("0", "1", "true", "false", "on", "off"):
            raise ConfigError(f"progress is {value!r}; it must be 'auto', 'on' or 'off'")
        return value.lower() in ("1", "true", "on")
    return bool(value)


def _folder(value: Any) -> Path:
    return Path(os.fspath(value)).expanduser()


SETTINGS: Final[dict[str, Setting]] = {
    s.name: s
    for s in (
        Setting("home", "PYCAUSET_HOME", "folder", "~/.pycauset", "process", "Where hardware_profile.json is cached.", _folder),
        Setting(
            "scratch",
            "PYCAUSET_SCRATCH",
            "folder",
            None,
            "process",
            "Where results without out= go when RAM cannot hold them; "
            "a private folder under the system's temporary one if unset.",
            lambda v: None if v in (None, "") else _folder(v),
        ),
        Setting("memory", "PYCAUSET_MEMORY", "bytes", None, "operation", "Host memory limit of one operation.", _bytes_or_none),
        Setting(
            "gpu_memory", "PYCAUSET_GPU_MEMORY", "bytes", None, "operation", "GPU memory limit of one operation.", _bytes_or_none
        ),
        Setting(
            "pinning_budget",
            "PYCAUSET_PINNING_BUDGET",
            "bytes",
            None,
            "process",
            "Page-locked host memory that the whole process may hold; min(RAM/2, 0.8 × free RAM, 8 GB) if unset.",
            _bytes_or_none,
        ),
        Setting(
            "backend",
            "PYCAUSET_BACKEND",
            "auto|cpu|gpu",
            "auto",
            "operation",
            "Forces the device that the solver picks.",
            _backend,
        ),
        Setting(
            "to_numpy_limit",
            "PYCAUSET_TO_NUMPY_LIMIT",
            "bytes",
            None,
            "process",
            "Largest result of Matrix.to_numpy() without force=True; half of the free RAM if unset.",
            _bytes_or_none,
        ),
        Setting(
            "progress",
            "PYCAUSET_PROGRESS",
            "auto|on|off",
            None,
            "operation",
            "Progress bars on work over two seconds.",
            _progress,
        ),
    )
}

_configured: dict[str, Any] = {}
_scoped: ContextVar[dict[str, Any] | None] = ContextVar("pycauset_settings", default=None)


def _check(name: str) -> Setting:
    try:
        return SETTINGS[name]
    except KeyError:
        raise ConfigError(f"no setting is called {name!r}; there are {', '.join(sorted(SETTINGS))}") from None


def get(name: str) -> Any:
    """The value in force of the setting ``name``."""
    setting = _check(name)
    scoped = _scoped.get()
    if scoped is not None and name in scoped:
        return scoped[name]
    if name in _configured:
        return _configured[name]
    text = os.environ.get(setting.env)
    if text is not None:
        try:
            return setting.parse(text)
        except ConfigError as error:
            raise ConfigError(f"environment variable {setting.env}: {error}") from None
    return setting.parse(setting.default)


def configure(**values: Any) -> None:
    """Set settings for the whole process; ``None`` goes back to the environment's value or the default.

    Examples
    --------
    >>> configure(memory="4GB")
    >>> get("memory")
    4000000000
    >>> configure(memory=None)
    """
    parsed = {name: None if value is None else _check(name).parse(value) for name, value in values.items()}
    for name, value in parsed.items():
        _check(name)
        if value is None:
            _configured.pop(name, None)
        else:
            _configured[name] = value


@contextlib.contextmanager
def settings(**values: Any) -> Iterator[None]:
    """Set settings inside a ``with`` block, for this thread or task alone.

    Examples
    --------
    >>> with settings(memory="1GB", progress=False):
    ...     get("memory")
    1000000000
    """
    parsed = {name: _check(name).parse(value) for name, value in values.items()}
    token = _scoped.set({**(_scoped.get() or {}), **parsed})
    try:
        yield
    finally:
        _scoped.reset(token)
