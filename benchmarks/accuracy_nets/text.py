"""A text for a language model: the documentation in networkx's source, in the order of its files.

Every release of networkx is one wheel for all machines, and the extra 'bench' pins one, so that the
text is the same everywhere. Tokens are ASCII codes. Invariant: the last tenth is never trained on,
and no string is in the text twice.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

import numpy as np

PACKAGE = "networkx"
TOKENS = 128
SHORTEST = 200  # characters; what is shorter is no documentation
HELD_OUT = 0.1


@cache
def tokens() -> np.ndarray:
    """The whole text as int32 codes; what is not ASCII is a question mark."""
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed: pip install 'flaxcle[bench]', which pins its version"
        )
    text = "\n\n".join(documentation(Path(package.origin).parent))
    return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)


def documentation(root: Path) -> dict[str, None]:
    """The long strings in all source files but the tests, each once, in a fixed order."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    trees = [ast.parse((root / path).read_bytes()) for path in paths if "/tests/" not in path]
    nodes = (node for tree in trees for node in ast.walk(tree))
    values = (node.value for node in nodes if isinstance(node, ast.Constant))
    strings = (value for value in values if isinstance(value, str))
    return dict.fromkeys(cleandoc(string) for string in strings if len(string) >= SHORTEST)


def training_text() -> np.ndarray:
    """The first nine tenths."""
    return tokens()[: -_held_out()]


def test_text() -> np.ndarray:
    """The last tenth."""
    return tokens()[-_held_out() :]


def _held_out() -> int:
    return int(HELD_OUT * len(tokens()))


def windows(text: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (n, length) from each start, and for each the token that follows it."""
    positions = starts[:, None] + np.arange(length)[None]
    return text[positions], text[positions + 1]
