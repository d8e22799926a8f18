"""The messages of a compiled program, read from its text: what travels between devices."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
LINE = re.compile(rf"= (?P<result>.*?) (?:ragged-)?(?P<kind>{KINDS})(?:-start)?\((?P<operands>.*)")
SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One message: its kind, and the elements of the largest array that it takes or makes."""

    kind: str
    elements: int


def collectives(compiled: Any) -> list[Collective]:
    """All messages of a compiled program."""
    found = []
    for match in map(LINE.search, compiled.as_text().splitlines()):
        if match:
            shapes = SHAPE.findall(match["result"]) + SHAPE.findall(match["operands"])
            sizes = [math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes]
            found.append(Collective(match["kind"], max(sizes)))
    return found
