"""What users read is true: every code block runs, every public name is documented with an example.

The blocks of a page are one script and run in order. A block that can't run here stands under
`<!-- no-run: the reason -->`, and only under that. They run with the settings of a user, not with
the strict ones of the test suite.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from pathlib import Path
from typing import Any

import jax
import pytest

import flaxcle

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)\n(?P<body>(?:.*\n)*?)(?P=indent)```$", re.M)
NO_RUN = re.compile(r"<!-- no-run: \S.* -->\n *\Z")


def is_public(name: str, value: Any) -> bool:
    ours = getattr(value, "__module__", "").partition(".")[0] == "flaxcle"
    return ours and not name.startswith("_") and not isinstance(value, types.ModuleType)


PUBLIC = sorted(name for name, value in vars(flaxcle).items() if is_public(name, value))


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of the blocks to run."""
    found = []
    for fence in FENCE.finditer(text):
        is_python = fence["info"].split()[:1] in (["python"], ["py"])
        if is_python and not NO_RUN.search(text, 0, fence.start()):
            found.append((text.count("\n", 0, fence.start("body")), textwrap.dedent(fence["body"])))
    return found


def run(page: Path) -> None:
    namespace = {"__name__": "__main__"}
    for line, code in python_blocks(page.read_text(encoding="utf-8")):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        run(page)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented_in_the_reference(name):
    value = getattr(flaxcle, name)
    entry = f"::: {value.__module__}.{value.__qualname__}"
    pages = (DOCS / "reference").glob("*.md")
    documented = any(entry in page.read_text("utf-8").splitlines() for page in pages)
    assert documented, f"add the line {entry!r} to a page of docs/reference"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented_with_an_example(name):
    text = inspect.getdoc(getattr(flaxcle, name)) or ""
    assert ">>> " in text, f"flaxcle.{name} has no example (>>>) in its docstring"


def test_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


def test_blocks_are_found_with_their_lines():
    page = "a\n```python\nx = 1\n```\n\n    ```py title='t'\n    y = 2\n    ```\n```text\nno\n```\n"
    assert python_blocks(page) == [(2, "x = 1\n"), (6, "y = 2\n")]


@pytest.mark.parametrize(
    ("mark", "runs"),
    [
        ("<!-- no-run: needs a GPU -->", False),
        ("<!-- no-run: -->", True),
        ("<!-- no-run -->", True),
    ],
)
def test_a_block_is_left_out_only_with_a_reason(mark, runs):
    assert bool(python_blocks(f"{mark}\n```python\nx = 1\n```\n")) == runs


def test_a_wrong_block_fails_at_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno == 4
