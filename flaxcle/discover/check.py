"""`check_spec`: does the function stay the same when the scales of a spec move?

The leaves get the scales that the spec declares, and the function is interpreted on them. Every
equation must hold whatever the declared scales are; symbols of the analysis may be solved for.
The invariant: the error names the first operation, in program order, that the scales break.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxcle.discover.atoms import Atoms, Row, quotient
from flaxcle.discover.classes import Combination
from flaxcle.discover.declared import Owner, declared_scales, owner_of
from flaxcle.discover.interpret import Interpreter, state
from flaxcle.discover.reasons import explain, named_call
from flaxcle.discover.roles import find_usage
from flaxcle.discover.system import System
from flaxcle.discover.views import View
from flaxcle.errors import SpecError
from flaxcle.jaxpr import Program, Value, trace
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.paths import PyTree, strip_collection
from flaxcle.rules.context import Why
from flaxcle.spec import Group, Spec, check_fit


class Makers:
    """Which leaves a value is made of: a view of them, or the kernel of its last contraction."""

    def __init__(self, program: Program, views: Mapping[int, tuple[View, ...]]) -> None:
        self._views = views
        self._ops = {id(value): op for op in program.graph.flat for value in op.outputs}

    def views(self, value: Value) -> list[str]:
        """The leaves that the value is a view of."""
        return [view.leaf for view in self._views.get(id(value), ())]

    def kernel(self, value: Value) -> str:
        """The kernel of the contraction that the value comes from, through one operand a step."""
        while id(value) in self._ops:
            op = self._ops[id(value)]
            leaves = [leaf for operand in op.inputs for leaf in self.views(operand)]
            if op.primitive in CONTRACTIONS:
                return leaves[0] if leaves else ""
            data = [v for v in op.inputs if not v.known and not self.views(v)]
            if not data:
                return ""
            value = data[0]
        return ""


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
        flaxcle.errors.SpecError: the spec would change the function: 'b' meets in 'add' the scaled
        channels of 'a -> c': channels 0 to 3, add ... What to do: scale 'b' in that group too, ...
    """
    # Group by group: whether two of them contradict each other is for the function to say.
    for part in [Spec((group,)) for group in spec.groups] or [spec]:
        check_fit(part, params)
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
        raise _error(left, why, atoms, owners, Makers(program, find_usage(program).views))


def _first_broken(
    rows: Sequence[Row], atoms: Atoms, declared: int
) -> tuple[Combination, Row] | None:
    """The first row that declared scales alone would have to satisfy."""
    system = System(atoms, declared)
    for row in rows:
        left = system.take(row)
        if left:
            return left, row
    return None


def _error(
    left: Combination, why: Why, atoms: Atoms, owners: Sequence[Owner], makers: Makers
) -> SpecError:
    atom = next(a for a in left if owner_of(int(atoms.starts[a]), owners) is not None)
    group, channel = owner_of(int(atoms.starts[atom]), owners) or (owners[0].group, 0)
    last = channel + int(atoms.sizes[atom]) - 1
    where = f"channel {channel}" if last == channel else f"channels {channel} to {last}"
    if why.op is not None:
        places = [why.op.primitive, f"in {why.op.scope}" if why.op.scope else "", why.op.source]
        where = f"{where}, {' '.join(place for place in places if place)}"
    told, then = _told(why, group, makers)
    return SpecError(f"the spec would change the function: {told}", where=where, then=then)


def _told(why: Why, group: Group, makers: Makers) -> tuple[str, str]:
    """What breaks there, and what to do about it."""
    scaled = {site.path for site in group.sites}
    leaves = [leaf for value in why.op.inputs for leaf in makers.views(value)] if why.op else []
    missing = next((leaf for leaf in leaves if leaf not in scaled), None)
    met = why.kind in ("sum", "equal")
    drop = f"leave {group.name!r} out of the spec; find_spec lists what can be scaled"
    if why.op is None:
        return f"{group.name!r} scales an output", drop
    if met and missing is not None:
        name = strip_collection(missing)
        verb = "also consumes" if why.kind == "sum" else f"meets in {why.op.primitive!r}"
        told = f"{name!r} {verb} the scaled channels of {group.name!r}"
        return told, f"scale {name!r} in that group too, or {drop}"
    if met and leaves:
        return _mismatch(why, group, leaves[0], makers)
    others = (makers.kernel(value) for value in why.op.inputs if not value.known)
    kernel = next((leaf for leaf in others if leaf and leaf not in scaled), "")
    if why.kind == "equal" and kernel and not named_call(why.op):
        name = strip_collection(kernel)
        told = f"what {name!r} makes meets the scaled channels of {group.name!r} in "
        return f"{told}{why.op.primitive!r}", f"scale {name!r} in that group too, or {drop}"
    return f"{explain(why)}, which breaks {group.name!r}", drop


def _mismatch(why: Why, group: Group, leaf: str, makers: Makers) -> tuple[str, str]:
    """A leaf of the group meets something of another scale."""
    assert why.op is not None
    name = strip_collection(leaf)
    kernels = [makers.kernel(value) for value in why.op.inputs if not makers.views(value)]
    unscaled = [k for k in kernels if k and all(site.path != k for site in group.sites)]
    if why.kind == "equal" and unscaled:
        other = strip_collection(unscaled[0])
        told = f"{name!r} carries the scale of {group.name!r}, but what {other!r} makes does not"
        return told, f"scale {other!r} in that group too, or take {name!r} out of it"
    told = f"{name!r} and what it meets carry different scales of {group.name!r}"
    return told, f"correct power, axes or index of {name!r}; find_spec lists what can be scaled"
