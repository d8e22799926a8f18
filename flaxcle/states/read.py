"""From an optimizer state to its leaves: which param each one mirrors, and to what power it moves.

States are visited in the order in which their transformations act, and for each param the unit of
the updates is followed on the way: -1 for gradients, 0 once they are divided by their magnitude.
The invariant: one row for each leaf, in flatten order, nothing left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from flaxcle.apply import SLOTS
from flaxcle.errors import PathError, closest
from flaxcle.paths import (
    PyTree,
    canonical,
    is_float,
    named_leaves,
    parent,
    shape_of,
    strip_collection,
)
from flaxcle.states.factored import factored_leaf, whole_shapes
from flaxcle.states.leaf import StateLeaf
from flaxcle.states.table import NORMALIZED, Field, Kind, kind_of_state

Keys = tuple[Any, ...]
Units = Mapping[str, int]
_GRADIENT = SLOTS["first_moment"]


def read_state(opt_state: PyTree, params: PyTree) -> list[StateLeaf]:
    """The rows of all leaves.

    Raises:
        PathError: the state is that of other params.
    """
    reader = _Reader(params)
    reader.visit(opt_state, (), {}, "")
    if reader.strangers and all(row.param is None for row in reader.leaves):
        name = reader.strangers[0]
        raise PathError(
            "the optimizer state is not that of these params",
            where=f"none of them is called {name!r}",
            then="pass the params that the optimizer was initialized with; the closest names are "
            + closest(name, reader.shapes),
        )
    return reader.leaves


class _Reader:
    """Visits a state from the outside in, and collects rows."""

    def __init__(self, params: PyTree) -> None:
        """Params are looked up by their paths, with or without a collection."""
        self.shapes = {path: shape_of(leaf) for path, leaf in named_leaves(params).items()}
        bare = {strip_collection(path): path for path in self.shapes}
        trained = {p.removeprefix("params/"): p for p in self.shapes if p.startswith("params/")}
        self.names = bare | trained | {path: path for path in self.shapes}
        self.leaves: list[StateLeaf] = []
        self.strangers: list[str] = []

    def visit(self, node: PyTree, keys: Keys, units: Units, owner: str) -> Units:
        """Collects the rows of a node, and returns the units of the updates behind it."""
        kind = kind_of_state(node)
        if kind is not None:
            return self._visit_kind(node, kind, keys, units)
        children = list(_children(node))
        if children and children[0][1] is node:
            self.leaves.append(self._unknown(canonical(keys), node, owner))
            return units
        inside = owner if type(node) in (tuple, list, dict) else type(node).__name__
        for key, child in children:
            units = self.visit(child, (*keys, *key), units, inside)
        return units

    def _visit_kind(self, state: Any, kind: Kind, keys: Keys, units: Units) -> Units:
        behind, mirrored = dict(units), set[str]()
        for key, child in _children(state):
            own, field = (*keys, *key), kind.fields.get(key[0].name)
            if field is None or field.inner:
                behind.update(self.visit(child, own, units, type(state).__name__))
                continue
            whole = whole_shapes(state) if field.part else {}
            for inner, leaf in jax.tree_util.tree_flatten_with_path(child)[0]:
                row = self._row(canonical((*own, *inner)), canonical(inner), leaf, field, units)
                if field.part and row.param is not None:
                    shape = self.shapes[row.param]
                    row = factored_leaf(row, field.part, leaf, shape, whole[canonical(inner)])
                self.leaves.append(row)
                mirrored |= {row.param} if row.param is not None else set()
        return behind if kind.out is None else behind | dict.fromkeys(mirrored, kind.out)

    def _row(self, path: str, name: str, leaf: Any, field: Field, units: Units) -> StateLeaf:
        param = self._mirrored(name)
        if field.why:
            unknown = field.mixed and is_float(leaf)
            return StateLeaf(path, param if name else None, None if unknown else 0, field.why)
        if param is None:
            self.strangers.append(name)
            return StateLeaf(path, None, None, "no param has this name")
        exponent = field.order * units.get(param, _GRADIENT) + field.fixed
        if not field.part and shape_of(leaf) != self.shapes[param]:
            return StateLeaf(path, param, None, f"its shape is not {self.shapes[param]}")
        return StateLeaf(path, param, exponent, "" if exponent else NORMALIZED)

    def _mirrored(self, name: str) -> str | None:
        """The param of this name, or the one that a part of it (`'a/kernel/0'`) belongs to."""
        for view in (name, strip_collection(name)):
            while view and view not in self.names:
                view = parent(view)
            if view in self.names:
                return self.names[view]
        return None

    def _unknown(self, path: str, leaf: Any, owner: str) -> StateLeaf:
        """A leaf in no state of the table: a single number is taken to be right as it is."""
        if not is_float(leaf) or not shape_of(leaf):
            return StateLeaf(path, None, 0, "a number")
        ends = [path.split("/", start)[-1] for start in range(path.count("/") + 1)]
        likely = [self.names[end] for end in ends if end in self.names]
        param = next((p for p in likely if self.shapes[p] == shape_of(leaf)), None)
        return StateLeaf(path, param, None, f"in {owner or 'a container'}, which is no known state")


def _children(node: PyTree) -> Iterator[tuple[Keys, Any]]:
    """The children of a node with their keys; a leaf is its own child."""
    yield from jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda one: one is not node)[0]
