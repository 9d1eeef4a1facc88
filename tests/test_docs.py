"""Every Python block of the README and the docs runs, and so does every example in a docstring.

The blocks of a page share one namespace and run in the page's order in an empty folder. A block that needs a GPU stands
right below a line ``<!-- gpu -->``. A block with ``>>>`` prompts is checked as a doctest; others must merely run.
"""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.exists())
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "pycauset").rglob("*.py")
    if path.stem != "__main__"
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL

_BLOCK = re.compile(r"^(?P<indent>[ ]*)```(?:python|py)[^\n`]*\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    code: str
    needs_gpu: bool


def blocks_of(text: str) -> list[Block]:
    """The Python blocks of a Markdown page, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2].strip()
        code = "".join(line[len(match["indent"]) :] if line.strip() else "\n" for line in match["code"].splitlines(keepends=True))
        found.append(Block(text[: match.start()].count("\n") + 2, code, above == "<!-- gpu -->"))
    return found


def run_block(block: Block, page: str, namespace: dict[str, object]) -> None:
    """Run one block; a failure points at its line in the page."""
    if ">>>" in block.code:
        test = doctest.DocTestParser().get_doctest(block.code, namespace, page, page, block.line - 1)
        results: list[str] = []
        runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
        runner.run(test, out=results.append, clear_globs=False)
        namespace.update(test.globs)
        assert not runner.failures, "".join(results)
    else:
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)


def _gpu() -> bool:
    from pycauset.hardware import gpu_info

    return gpu_info() is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, but for the made-up machines that examples load."""
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", [path for path in PAGES if blocks_of(path.read_text())], ids=lambda path: path.stem)
def test_blocks_run(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(path.read_text()):
        if not block.needs_gpu or _gpu():
            run_block(block, str(path.relative_to(ROOT)), namespace)
    namespace.clear()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), optionflags=OPTIONS).failed == 0


def test_a_public_page_has_something_to_run() -> None:
    """The README shows working code: a page whose blocks are not found would pass silently."""
    assert blocks_of((ROOT / "README.md").read_text())


def test_blocks_are_found_and_checked() -> None:
    page = (
        "text\n```python\na = 1\n```\n\n<!-- gpu -->\n```python\nb\n```\n"
        "* x\n\n    ```py\n    >>> a + 1\n    2\n    ```\n```bash\nls\n```\n"
    )
    first, second, third = blocks_of(page)
    assert (first.line, first.code, first.needs_gpu, second.needs_gpu) == (3, "a = 1\n", False, True)
    namespace: dict[str, object] = {}
    run_block(first, "page", namespace)
    run_block(third, "page", namespace)
    with pytest.raises(AssertionError, match="Expected"):
        run_block(third._replace(code=third.code.replace("2", "3")), "page", namespace)
    with pytest.raises(NameError):
        run_block(second, "page", namespace)
