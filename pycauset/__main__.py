"""``python -m pycauset``: the command line."""

from __future__ import annotations

from pycauset.cli import main

if __name__ == "__main__":
    main()
