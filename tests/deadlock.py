"""What ends a test that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator

_terminal = 2


def keep_terminal() -> None:
    """Remember where standard error leads before pytest captures it."""
    global _terminal
    _terminal = os.dup(2)


@contextlib.contextmanager
def watchdog(seconds: float = 300.0) -> Iterator[None]:
    """A deadlock ends the test run with every thread's traceback instead of hanging it.

    On a busy machine correct work may take ten times as long, hence minutes. The tracebacks go to the terminal: what pytest
    captures is lost with the process, and of a worker of pytest-xdist nothing but "node down: Not properly terminated" is left.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_terminal)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
