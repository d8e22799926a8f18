"""`check_spec`: does the function stay the same when the scales of a spec move?

The leaves get the scales that the spec declares, and the function is interpreted on them. Every
equation must hold whatever the declared scales are; symbols of the analysis may be solved for.
The invariant: the error names the first operation, in program order, that the scales break.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flaxcle.discover.atoms import Atoms, Row, quotient
from flaxcle.discover.classes import Combination
from flaxcle.discover.declared import Owner, declared_scales, owner_of
from flaxcle.discover.interpret import Interpreter, state
from flaxcle.discover.reasons import explain
from flaxcle.discover.roles import find_usage
from flaxcle.discover.views import View
from flaxcle.errors import SpecError
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree, strip_collection
from flaxcle.rules.context import Why
from flaxcle.spec import Group, Spec, check_fit

Views = Mapping[int, tuple[View, ...]]


def check_spec(fn: Callable[..., Any], params: PyTree, spec: Spec, *inputs: Any) -> None:
    """Refuses a spec whose scales would change `fn(params, *inputs)`.

    Args:
        fn: the function.
        params: its params; arrays or `jax.ShapeDtypeStruct`.
        spec: any spec, declared by hand or found.
        inputs: example inputs, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        SpecError: some scale does not cancel; the message names the group, the leaf that is
            missing or scaled otherwise, the operation and its source line.
        TraceError: no output depends on params.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxcle import Group, Site
        >>> fn = lambda p, x: (x @ p["a"] + p["b"]) @ p["c"]
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones(4), "c": jnp.ones((4, 2))}
        >>> pair = Group("a -> c", (4,), (Site("a", (1,)), Site("c", (0,), -1)))
        >>> check_spec(fn, params, Spec((pair,)), jnp.ones((5, 3)))
        Traceback (most recent call last):
        ...
        flaxcle.errors.SpecError: the spec would change the function: 'b' meets the scaled channels
        of 'a -> c' in 'add' and carries another scale: channels 0 to 3, add ... What to do: ...
    """
    check_fit(spec, params)
    program = trace(fn, params, *inputs)
    interpreter = Interpreter()
    context = interpreter.context
    scales, owners = declared_scales(program, spec, context)
    declared = context.symbols
    state(program, interpreter, scales)
    borders = [owner.base for owner in owners] + [declared]
    atoms, rows = quotient(context.symbols, borders, context.equations)
    broken = _first_broken(rows, atoms, declared)
    if broken is not None:
        left, row = broken
        why = context.whys[row.why]
        raise _error(left, why, atoms, owners, find_usage(program).views)


def _first_broken(
    rows: Sequence[Row], atoms: Atoms, declared: int
) -> tuple[Combination, Row] | None:
    """The first row that declared scales alone would have to satisfy."""
    system = _System(atoms, declared)
    for row in rows:
        left = system.take(row)
        if left:
            return left, row
    return None


@dataclass
class _System:
    """Equations solved one by one for the symbols that the spec does not declare."""

    atoms: Atoms
    declared: int

    def __post_init__(self) -> None:
        self._solved: dict[int, Combination] = {}

    def take(self, row: Row) -> Combination:
        """Solves a row; returns what is left when no symbol of the analysis can."""
        left = self._reduced(zip(row.atoms, row.powers, strict=True))
        long = any(self.atoms.sizes[atom] > 1 for atom in left)
        pivot = next((atom for atom in left if self._may_leave(atom, long)), None)
        if pivot is None:
            return left
        power = left.pop(pivot)
        self._solved[pivot] = {atom: -Fraction(p) / power for atom, p in left.items()}
        return {}

    def _may_leave(self, atom: int, long: bool) -> bool:
        free = self.atoms.starts[atom] >= self.declared
        return bool(free and (self.atoms.sizes[atom] > 1 or not long))

    def _reduced(self, terms: Any) -> Combination:
        out: Combination = {}
        todo = list(terms)
        while todo:
            atom, power = todo.pop()
            if atom in self._solved:
                todo += [(other, power * p) for other, p in self._solved[atom].items()]
            else:
                out[atom] = out.get(atom, 0) + power
        return {atom: power for atom, power in out.items() if power}


def _error(
    left: Combination, why: Why, atoms: Atoms, owners: Sequence[Owner], views: Views
) -> SpecError:
    atom = next(a for a in left if owner_of(int(atoms.starts[a]), owners) is not None)
    group, channel = owner_of(int(atoms.starts[atom]), owners) or (owners[0].group, 0)
    last = channel + int(atoms.sizes[atom]) - 1
    where = f"channel {channel}" if last == channel else f"channels {channel} to {last}"
    if why.op is not None:
        places = [why.op.primitive, f"in {why.op.scope}" if why.op.scope else "", why.op.source]
        where = f"{where}, {' '.join(place for place in places if place)}"
    found = _leaf_met(why, group, views)
    return SpecError(
        f"the spec would change the function: {_told(found, why, group)}",
        where=where,
        then=_advice(found, group),
    )


def _leaf_met(why: Why, group: Group, views: Views) -> str | None:
    """The leaf that meets the scaled tensor there: one that the group forgot, before others."""
    if why.op is None or why.kind not in ("sum", "equal"):
        return None
    leaves = [view.leaf for value in why.op.inputs for view in views.get(id(value), ())]
    scaled = {site.path for site in group.sites}
    return next((leaf for leaf in leaves if leaf not in scaled), next(iter(leaves), None))


def _told(leaf: str | None, why: Why, group: Group) -> str:
    op = why.op
    if op is None:
        return f"{group.name!r} scales an output"
    if leaf is None:
        return f"{explain(why)}, which breaks {group.name!r}"
    name = strip_collection(leaf)
    if why.kind == "sum":
        return f"{name!r} also consumes the channels of {group.name!r}" + _otherwise(leaf, group)
    return (
        f"{name!r} meets the scaled channels of {group.name!r} in {op.primitive!r} and carries "
        "another scale"
    )


def _otherwise(leaf: str, group: Group) -> str:
    scaled = any(site.path == leaf for site in group.sites)
    return " with another power or at other positions" if scaled else ""


def _advice(leaf: str | None, group: Group) -> str:
    if leaf is None:
        return f"leave {group.name!r} out of the spec; find_spec lists what can be scaled"
    verb = "correct" if any(site.path == leaf for site in group.sites) else "add"
    return f"{verb} the site of {strip_collection(leaf)!r}, or compare with what find_spec finds"
