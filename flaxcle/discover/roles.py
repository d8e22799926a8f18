"""Which axes of a leaf carry one scale together, read off from how the leaf is used first.

A matrix product sums over some axes of a kernel and keeps others: its scale is a product of one
factor per sum and one per result, `s_in[k] * s_out[n]`. A leaf used element by element has one
joint factor over all its axes. The invariant: any answer is sound, a finer one finds more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flaxcle.discover.views import View, mapped_views
from flaxcle.jaxpr import Graph, Op, Program, Value
from flaxcle.jaxpr.trace import scan_arity

MAX_LISTED = 1 << 16


class Role(NamedTuple):
    """Axes of a leaf that carry one factor.

    `kind`: 'in' (summed over), 'out' (kept), 'through' (depthwise), 'grouped' (the in-factor of a
    grouped convolution, which varies along in-axis and group) or 'joint'.
    """

    kind: str
    axes: tuple[int, ...]
    groups: int = 1


@dataclass
class Usage:
    """Roles by leaf, in order of first use, and the views that values are, by identity."""

    roles: dict[str, tuple[Role, ...]] = field(default_factory=dict)
    views: dict[int, tuple[View, ...]] = field(default_factory=dict)

    def enter(self, view: View, roles: Iterable[Role]) -> None:
        """Enters the first use of a leaf; a role that names no axis is left out."""
        if view.leaf not in self.roles:
            self.roles[view.leaf] = tuple(dict.fromkeys(role for role in roles if role.axes))


def find_usage(program: Program) -> Usage:
    """The roles of all leaves that reach an output."""
    usage = Usage()
    pure = {id(value) for value in program.params.values()}
    for path, value in program.params.items():
        usage.views[id(value)] = (View.of(path, value.shape),)
    _walk(program.graph, pure, usage)
    return usage


def _walk(graph: Graph, pure: set[int], usage: Usage) -> None:
    views = usage.views
    for op in graph.flat:
        own = [views.get(id(value), ()) for value in op.inputs]
        if op.bodies:
            _walk_bodies(op, pure, usage)
            continue
        if all(value.known or id(value) in pure for value in op.inputs):
            moved = mapped_views(op, own)
            if moved is not None:
                for value in op.outputs:
                    views[id(value)] = moved
                    pure.add(id(value))
                if op.primitive == "dot_general":
                    _use(op, own, usage)
                continue
        _use(op, own, usage)
    for value in graph.outputs:
        for view in views.get(id(value), ()):
            usage.enter(view, _joint(view, value.shape))


def _use(op: Op, own: Sequence[tuple[View, ...]], usage: Usage) -> None:
    """Enters the leaves that an operation meets with data."""
    for number, (value, found) in enumerate(zip(op.inputs, own, strict=True)):
        for view in found:
            usage.enter(view, _roles(op, number, view, value))


def _roles(op: Op, number: int, view: View, value: Value) -> Iterable[Role]:
    if op.primitive == "dot_general":
        return _contracted(view, number, op.params["dimension_numbers"])
    if op.primitive == "ragged_dot_general" and number == 1:
        numbers = op.params["ragged_dot_dimension_numbers"]
        return _contracted(view, 1, numbers.dot_dimension_numbers, numbers.rhs_group_dimensions)
    if op.primitive == "conv_general_dilated" and number == 1:
        return _convolved(op, view, value)
    if op.primitive == "gather" and number == 0:
        return _looked_up(op, view)
    return _joint(view, value.shape)


def _role(kind: str, *parts: Iterable[int]) -> Role:
    return Role(kind, tuple(sorted(set().union(*parts))))


def _contracted(view: View, number: int, numbers: Any, groups: Sequence[int] = ()) -> list[Role]:
    sums, batches = numbers
    summed = set().union(*(view.axes[a] for a in sums[number]))
    batch = set(view.extra).union(*(view.axes[a] for a in batches[number]))
    rest = set(range(len(view.axes))) - {*sums[number], *batches[number], *groups}
    kept = set().union(*(view.axes[a] for a in rest))
    roles = [_role("in", summed, batch)] if summed else []
    if kept or not summed:
        roles.append(_role("out", kept, batch))
    return roles


def _convolved(op: Op, view: View, value: Value) -> list[Role]:
    spec = op.params["dimension_numbers"].rhs_spec
    groups = op.params["feature_group_count"] * op.params["batch_group_count"]
    outs, ins = (view.axes[spec[0]], view.axes[spec[1]])
    extra = view.extra
    if groups == 1:
        return [_role("in", ins, extra)] * bool(ins) + [_role("out", outs, extra)]
    if value.shape[spec[1]] == 1:
        return [_role("through", outs, extra)]
    if len(ins) == len(outs) == 1 and not extra:
        return [Role("grouped", (*ins, *outs), groups), _role("out", outs)]
    return [_role("joint", ins, outs, extra)]


def _looked_up(op: Op, view: View) -> list[Role]:
    indexed = set(op.params["dimension_numbers"].start_index_map)
    batch = set(view.extra)
    rows = set().union(*(view.axes[a] for a in indexed))
    kept = set().union(*(axes for a, axes in enumerate(view.axes) if a not in indexed))
    return [_role("in", rows, batch), *([_role("out", kept, batch)] if kept else [])]


def _joint(view: View, shape: Sequence[int]) -> list[Role]:
    """All axes in one factor, unless listing its elements would be too long."""
    sizes = sorted(n for n, axes in zip(shape, view.axes, strict=True) if axes)
    if math.prod(sizes[:-1]) <= MAX_LISTED:
        return [_role("joint", view.extra, *view.axes)]
    return [_role("out", axes, view.extra) for axes in view.axes if axes]


def _walk_bodies(op: Op, pure: set[int], usage: Usage) -> None:
    """Leaves enter a loop as they are, or one slice at a time."""
    skip, n_consts, n_carry = _arity(op)
    for number, body in enumerate(op.bodies):
        outer = op.inputs[skip[number] :]
        for place, (value, source) in enumerate(zip(body.inputs, outer, strict=False)):
            found = usage.views.get(id(source), ())
            if place >= n_consts[number] and place < n_consts[number] + n_carry:
                for view in found:
                    usage.enter(view, _joint(view, source.shape))
                continue
            if place >= n_consts[number] + n_carry:
                found = tuple(view.sliced() for view in found)
            usage.views[id(value)] = found
            if source.known or id(source) in pure:
                pure.add(id(value))
        _walk(body, pure, usage)


def _arity(op: Op) -> tuple[list[int], list[int], int]:
    """For each body: operands before its own, number of constants; number of carries."""
    if op.primitive == "scan":
        n_consts, n_carry = scan_arity(op.params)
        return [0], [n_consts], n_carry
    if op.primitive == "while":
        n_cond, n_body = op.params["cond_nconsts"], op.params["body_nconsts"]
        return [0, n_cond], [n_cond, n_body], len(op.inputs) - n_cond - n_body
    skip = 1 if op.primitive == "cond" else 0
    return [skip] * len(op.bodies), [len(op.inputs)] * len(op.bodies), 0
