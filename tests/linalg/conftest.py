"""Fixtures of the tests of operations."""

from collections.abc import Iterator

import pytest

from tests.interruptions import watched_journals


@pytest.fixture(autouse=True)
def journals_are_watched() -> Iterator[None]:
    """For progress functions that interrupt the work once there is something to go on with."""
    with watched_journals():
        yield
