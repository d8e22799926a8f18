"""What users read is true: every code block runs, every public name is documented with an example.

The blocks of a page are one script and run in order. A page with tabs is one script for each label:
its blocks outside of tabs and those under this label. A block that can't run here stands under
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
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)\n(?P<body>(?:.*\n)*?)(?P=indent)```$", re.M)
TAB = re.compile(r'^=== "(?P<label>.+)"\n(?P<body>(?:(?: {4}.*)?\n)*)', re.M)
FRAMEWORKS = {"Equinox": "equinox", "Haiku": "haiku"}  # of no use to flaxcle itself
NO_RUN = re.compile(r"<!-- no-run: \S.* -->\n *\Z")


def is_public(name: str, value: Any) -> bool:
    ours = getattr(value, "__module__", "").partition(".")[0] == "flaxcle"
    return ours and not name.startswith("_") and not isinstance(value, types.ModuleType)


PUBLIC = sorted(name for name, value in vars(flaxcle).items() if is_public(name, value))


def labels(text: str) -> list[str | None]:
    """The labels of a page's tabs in their order; `None` is all of a page without."""
    return list(dict.fromkeys(tab["label"] for tab in TAB.finditer(text))) or [None]


def under(label: str | None, text: str) -> str:
    """The page with the other tabs left blank."""

    def kept(tab: re.Match[str]) -> str:
        return tab[0] if tab["label"] == label else "\n" * tab[0].count("\n")

    return TAB.sub(kept, text)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of the blocks to run."""
    found = []
    for fence in FENCE.finditer(text):
        is_python = fence["info"].split()[:1] in (["python"], ["py"])
        if is_python and not NO_RUN.search(text, 0, fence.start()):
            found.append((text.count("\n", 0, fence.start("body")), textwrap.dedent(fence["body"])))
    return found


def scripts() -> list[Any]:
    """Page and label of everything to run."""
    found = []
    for page in PAGES:
        for label in labels(page.read_text("utf-8")):
            name = str(page.relative_to(ROOT)) + (f" ({label})" if label else "")
            found.append(pytest.param(page, label, id=name))
    return found


SCRIPTS = scripts()


def run(page: Path, label: str | None = None) -> None:
    namespace = {"__name__": "__main__"}
    for line, code in python_blocks(under(label, page.read_text(encoding="utf-8"))):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize(("page", "label"), SCRIPTS)
def test_code_blocks_run(page, label, tmp_path, monkeypatch):
    pytest.importorskip(FRAMEWORKS.get(label, "flaxcle"))
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        run(page, label)


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


def test_tabs_of_one_label_make_one_script():
    page = """```py
a = 1
```

=== "Linen"

    ```py
    b = 2
    ```
=== "NNX"

    ```py
    b = 3
    ```

```py
c = 4
```
"""
    assert labels(page) == ["Linen", "NNX"]
    assert python_blocks(under("NNX", page)) == [(1, "a = 1\n"), (12, "b = 3\n"), (16, "c = 4\n")]
    assert [line for line, _ in python_blocks(under("Linen", page))] == [1, 7, 16]
    assert labels("```py\n```\n") == [None]


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
