"""Tests on a real GPU see the real machine: its profile is measured once for the session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home: the audit of the first test that needs a profile fills it."""
    folder = tmp_path_factory.mktemp("gpu-home")
    folder.chmod(0o700)
    return folder
