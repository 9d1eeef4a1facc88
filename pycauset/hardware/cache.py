"""The cached profile, ``hardware_profile.json`` in the setting ``home``: read with suspicion, written atomically.

Nothing here raises for what is on disk. A file that cannot be used comes back as the reason why, a file that cannot be
written likewise; the caller measures again and warns once.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from pycauset import config
from pycauset.hardware.profile import PROFILE_VERSION, HardwareProfile

__all__ = ["LARGEST_FILE", "profile_path", "read_profile", "write_profile"]

LARGEST_FILE: Final = 2**20
"""Bytes; a profile has a few thousand."""


def profile_path() -> Path:
    """Where the profile is cached: ``$PYCAUSET_HOME/hardware_profile.json``, by default under ``~/.pycauset``."""
    home: Path = config.get("home")
    return home / "hardware_profile.json"


def read_profile(path: Path, fingerprint: dict[str, str]) -> tuple[HardwareProfile | None, str | None]:
    """Read a cached profile of the machine with this fingerprint.

    Returns
    -------
    profile : HardwareProfile or None
    reason : str or None
        Why there is no profile; None as well if there just is no file yet.
    """
    try:
        content = _read_own_file(path)
    except FileNotFoundError:
        return None, None
    except _RefusedError as refused:
        return None, str(refused)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        return None, f"it cannot be read ({error})"
    try:
        profile = HardwareProfile.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        if place == "version":
            return None, f"it was written by another release (this one reads version {PROFILE_VERSION})"
        return None, f"it is corrupt ({place + ': ' if place else ''}{first['msg'][:200]})"
    if profile.fingerprint != fingerprint:
        names = sorted(fingerprint.keys() | profile.fingerprint.keys())
        changed = [name for name in names if fingerprint.get(name) != profile.fingerprint.get(name)]
        return None, f"it was measured on another machine or with other libraries ({', '.join(changed[:8])} changed)"
    return profile, None


def write_profile(path: Path, profile: HardwareProfile) -> str | None:
    """Write the profile with file mode 0600 so that a reader sees the old file or the new one, never a part.

    Returns
    -------
    str or None
        Why it could not be written; None if it was.
    """
    temporary = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp: a fresh name with mode 0600 that follows no link. os.replace then replaces a link, not its target.
        descriptor, temporary = tempfile.mkstemp(prefix=".hardware_profile-", suffix=".partial", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(profile.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return f"it cannot be written ({error})"
    return None


class _RefusedError(Exception):
    """The file is not one that this user's pycauset has written."""


def _read_own_file(path: Path) -> bytes:
    """The content of a private, regular file of sane size; whatever else lies there is not opened, or not believed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        if path.is_symlink():
            raise _RefusedError("it is a symbolic link, which is not followed") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _RefusedError("it is not a regular file")
        if found.st_uid != os.geteuid():
            raise _RefusedError(f"it belongs to user {found.st_uid}, not to you ({os.geteuid()})")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _RefusedError(f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})")
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise _RefusedError(f"it has {found.st_size} bytes; a profile has at most {LARGEST_FILE}")
    return content
