"""Which scales reach the two sides of a layer, and what keeps them from a side that has none.

A layer reads channels on some axes of its weight and makes them on others. A group that divides the
weight carries the channels that it reads, one that multiplies it those that it makes; an axis
without a group has a row in `Spec.blocked`. The invariant: a declared spec decides what is scaled,
a discovered one what else could be and what is blocked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flaxcle.report.data import Node, Side, State
from flaxcle.spec import Group, Spec

ORDER: tuple[State, ...] = ("scaled", "undeclared", "held", "blocked")

FROM_INPUT = "it reads the network's input, which must not change"


def with_sides(nodes: Sequence[Node], spec: Spec, found: Spec) -> tuple[Node, ...]:
    """The nodes with their sides; those without a weight pass on what reaches them.

    Args:
        nodes: in program order.
        spec: the groups that were used.
        found: what `find_spec` returns for the same params.
    """
    weights = {node.leaf for node in nodes if node.leaf}
    layers = _Layers(spec, found, weights)
    done: list[Node] = []
    for node in nodes:
        makers = [done[k].makes for k in node.inputs]
        kinds = {nodes[k].kind for k in node.inputs}
        done.append(layers.sided(node, kinds == {"input"}) if node.leaf else _passed(node, makers))
    return tuple(done)


def _passed(node: Node, makers: Sequence[Side | None]) -> Node:
    """A sum and an output share the scale of what flows into them."""
    if node.kind not in ("add", "output"):
        return node
    known = [side for side in makers if side is not None]
    side = max(known, key=_rank, default=None)
    return replace(node, reads=side, makes=side if node.kind == "add" else None)


class _Layers:
    def __init__(self, spec: Spec, found: Spec, weights: set[str]) -> None:
        used = {_rows(group) for group in spec.groups}
        others = [group for group in found.groups if _rows(group) not in used]
        self.groups = [(group, _side(group, "scaled")) for group in spec.groups]
        self.groups += [(group, _side(group, "undeclared")) for group in others]
        self.blocked = {(row.path, row.axis): row for row in found.blocked}
        self.weights = weights

    def sided(self, node: Node, first: bool) -> Node:
        """A layer with the sides of its weight; the `first` ones read an input."""
        reads = self._reads(node)
        if first and reads is not None and reads.state == "blocked":
            reads = replace(reads, reason=FROM_INPUT, source="")
        return replace(node, reads=reads, makes=self._makes(node))

    def _reads(self, node: Node) -> Side | None:
        sides = [
            side for group, side in self.groups if node.leaf in {s.path for s in group.consumers}
        ]
        return min(sides, key=_rank, default=None) or self._pinned(node, made=False)

    def _makes(self, node: Node) -> Side | None:
        groups = [
            pair for pair in self.groups if node.leaf in {site.path for site in pair[0].producers}
        ]
        sides = [
            side
            for group, side in groups
            if any(site.path in self.weights for site in group.consumers)
        ]
        if groups and not sides:
            return Side("blocked", reason="only its own norm can take the scale")
        return min(sides, key=_rank, default=None) or self._pinned(node, made=True)

    def _pinned(self, node: Node, *, made: bool) -> Side | None:
        for (path, axis), row in self.blocked.items():
            if path == node.leaf and (axis in node.out_axes) is made:
                return Side("blocked", reason=row.reason, source=row.source)
        return None


def _rank(side: Side) -> int:
    return ORDER.index(side.state)


def _side(group: Group, state: State) -> Side:
    return Side("held" if group.held else state, group.name)


def _rows(group: Group) -> frozenset[tuple[str, bool]]:
    """What makes two groups the same, however their rows are written."""
    return frozenset((site.path, site.power > 0) for site in group.sites)
