"""Bars appear when they should and nowhere else; time and terminal are made up."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from pycauset import config, progress
from pycauset.errors import ConfigError


class Terminal(io.StringIO):
    """Standard error that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made_up = Clock()
    monkeypatch.setattr(progress, "monotonic", made_up)
    monkeypatch.delenv("PYCAUSET_PROGRESS", raising=False)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return made_up


@pytest.fixture
def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Called inside a test: pytest's own capture takes standard error back between set-up and test."""

    def make() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return make


def test_a_callable_is_passed_through() -> None:
    seen: list[tuple[float, float]] = []
    with progress.reporter(lambda done, total: seen.append((done, total)), "t", 10.0) as report:
        report(3.0)
        report(10.0)
    assert seen == [(3.0, 10.0), (10.0, 10.0)]


def test_what_a_callable_raises_comes_through() -> None:
    def stop(done: float, total: float) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"), progress.reporter(stop, "t", 10.0) as report:
        report(3.0)


def test_a_bar_appears_after_two_seconds_on_a_terminal(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    threads = threading.active_count()
    with progress.reporter(None, "[bold]C = A B", 4e9) as report:
        clock.now += 1.9
        report(1e9)
        assert terminal.getvalue() == ""
        clock.now += 0.1
        report(2e9)
        shown = terminal.getvalue()
        assert threading.active_count() == threads
    for part in ("[bold]C = A B", "50%", "1.00 GFLOP/s", "2 s left"):
        assert part in shown
    assert terminal.getvalue().rstrip().endswith(("\x1b[?25h", "\x1b[2K")), "the cursor is back and the bar is gone"


def test_a_bar_is_redrawn_at_most_five_times_a_second(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with progress.reporter(True, "t", 100.0) as report:
        report(1.0)
        before = terminal.getvalue()
        for done in range(2, 20):
            clock.now += 0.01
            report(float(done))
        assert terminal.getvalue() == before
        clock.now += 0.1
        report(50.0)
        assert "50%" in terminal.getvalue()


def test_the_cursor_comes_back_after_an_error(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with pytest.raises(KeyboardInterrupt), progress.reporter(True, "t", 100.0) as report:
        report(1.0)
        assert "\x1b[?25l" in terminal.getvalue()
        raise KeyboardInterrupt
    assert "\x1b[?25h" in terminal.getvalue()


def test_bytes_have_their_own_rate(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with progress.reporter(True, "t", 4e9, unit="byte") as report:
        clock.now += 2.0
        report(2e9)
    assert "1.00 GB/s" in terminal.getvalue()


@pytest.mark.parametrize("wish", [None, False])
def test_quiet_when_not_a_terminal(clock: Clock, wish: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(wish, "t", 100.0) as report:
        clock.now += 60
        report(50.0)
    assert capfd.readouterr() == ("", "")


def test_false_is_quiet_on_a_terminal_and_so_is_the_setting(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with progress.reporter(False, "t", 100.0) as report:
        clock.now += 60
        report(50.0)
    with config.settings(progress="off"), progress.reporter(None, "t", 100.0) as report:
        clock.now += 60
        report(50.0)
    assert terminal.getvalue() == ""


def test_true_writes_one_line_where_there_is_no_terminal(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(True, "t", 100.0) as report:
        for done in (10.0, 50.0, 100.0):
            clock.now += 1
            report(done)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "100%" in err
    assert "\x1b" not in err


def test_a_terminal_that_goes_away_does_not_stop_the_work(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with progress.reporter(True, "t", 100.0) as report:
        report(1.0)
        terminal.close()
        for done in (2.0, 3.0):
            clock.now += 1
            report(done)


def test_no_work_at_all(clock: Clock, make_terminal: Callable[[], Terminal]) -> None:
    terminal = make_terminal()
    with progress.reporter(True, "t", 0.0) as report:
        report(0.0)
    assert "left" not in terminal.getvalue()


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="'loud'"):
        progress.reporter("loud", "t", 1.0)  # type: ignore[arg-type]


def test_rich_is_imported_with_the_first_bar_only() -> None:
    code = (
        "import sys; from pycauset.progress import reporter\n"
        "with reporter(None, 't', 1.0) as report: report(1.0)\n"
        "assert 'rich' not in sys.modules\n"
        "with reporter(True, 't', 1.0) as report: report(1.0)\n"
        "assert 'rich' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
