"""The network drawn as rails beside its list of layers.

Each layer is a row with a piece of drawing of its own height, so that text may wrap. Lane 0 leads
from each row to the next; what is read further down runs on a lane beside it, one for each source.
The invariant: two sources share a lane only where their rows don't overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flaxcle.report.data import Node, Side
from flaxcle.report.html import Markup, joined, tag

COLOURS = 8
_WIDE, _NARROW, _MANY = 14, 7, 8
_LEFT = 10


class Rails:
    """Lanes and colours of a network."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.last = _last_readers(nodes)
        self.lanes = _lanes(self.last)
        self.width = self._x(max(self.lanes.values(), default=0)) + _LEFT
        groups = dict.fromkeys(
            side.group for node in nodes for side in (node.reads, node.makes) if side and side.group
        )
        self.colours = {group: number % COLOURS for number, group in enumerate(groups)}

    def colour(self, side: Side | None) -> str:
        """The classes of a line or a chip."""
        if side is None:
            return "fixed"
        group = f" g{self.colours[side.group]}" if side.group else ""
        return side.state + group

    def row(self, number: int) -> Markup:
        """The drawing beside a row."""
        lines = [*self._straight(number), *self._passing(number), *self._arriving(number)]
        lines += self._leaving(number)
        dot = tag("circle", cx=_LEFT, cy="50%", r=5, class_=self.nodes[number].kind)
        return tag("svg", joined(*lines), dot, width=self.width, aria_hidden="true", class_="rail")

    def _x(self, lane: int) -> int:
        step = _WIDE if max(self.lanes.values(), default=0) <= _MANY else _NARROW
        return _LEFT + lane * step

    def _line(self, source: int, x1: int, y1: str, x2: int, y2: str) -> Markup:
        side = self.nodes[source].makes
        return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=self.colour(side))

    def _straight(self, number: int) -> Iterator[Markup]:
        """Lane 0, from the row before and to the next."""
        if number - 1 in self.nodes[number].inputs:
            yield self._line(number - 1, _LEFT, "0", _LEFT, "50%")
        if number + 1 < len(self.nodes) and number in self.nodes[number + 1].inputs:
            yield self._line(number, _LEFT, "50%", _LEFT, "100%")

    def _passing(self, number: int) -> Iterator[Markup]:
        for source, lane in self.lanes.items():
            if source < number < self.last[source]:
                yield self._line(source, self._x(lane), "0", self._x(lane), "100%")

    def _arriving(self, number: int) -> Iterator[Markup]:
        for source in self.nodes[number].inputs:
            if source in self.lanes and source < number - 1:
                x = self._x(self.lanes[source])
                if self.last[source] == number:
                    yield self._line(source, x, "0", x, "30%")
                yield self._line(source, x, "30%", _LEFT, "30%")
                yield self._line(source, _LEFT, "30%", _LEFT, "50%")

    def _leaving(self, number: int) -> Iterator[Markup]:
        if number in self.lanes:
            x = self._x(self.lanes[number])
            yield self._line(number, _LEFT, "50%", _LEFT, "70%")
            yield self._line(number, _LEFT, "70%", x, "70%")
            yield self._line(number, x, "70%", x, "100%")


def _last_readers(nodes: Sequence[Node]) -> dict[int, int]:
    """For each node that is read further down than in the next row, the last row that reads it."""
    last: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for source in node.inputs:
            if number > source + 1:
                last[source] = number
    return last


def _lanes(last: dict[int, int]) -> dict[int, int]:
    """A free lane for each source, from its row to its last reader's."""
    lanes: dict[int, int] = {}
    for source in sorted(last):
        taken = {lane for other, lane in lanes.items() if last[other] >= source}
        lanes[source] = next(lane for lane in range(1, len(last) + 1) if lane not in taken)
    return lanes
