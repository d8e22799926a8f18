"""How every quantized activation moves with the scales of a spec.

    log2 |value[p]| = const + sum_k power_k * x[ids_k[p]]

`x` holds the log2 scales of all groups, one after the other in the order of the spec. The leaves
get the symbols that the spec declares, the function is interpreted on them, and what reaches a
quantizer is written down. The invariant: an exponent holds declared symbols only; those of the
analysis are solved for, and where nothing decides about one it stays at zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flaxcle.discover.atoms import quotient
from flaxcle.discover.declared import declared_scales
from flaxcle.discover.interpret import Interpreter, state
from flaxcle.discover.system import System
from flaxcle.jaxpr import Op, Program
from flaxcle.rules import box, scale
from flaxcle.rules.context import shape_of
from flaxcle.rules.scale import Power, Scale, Term
from flaxcle.spec import Spec

Shape = tuple[int, ...]
Place = tuple[Op, int]


@dataclass(frozen=True, eq=False)
class Link:
    """`value *= 2 ** (power * x[ids])` along `axes`, which ascend; an id of -1 is no scale."""

    axes: tuple[int, ...]
    ids: np.ndarray
    power: float

    def moved(self, axes: Sequence[int]) -> Link:
        """The same on an array of which only `axes` are left."""
        return Link(tuple(axes.index(axis) for axis in self.axes), self.ids, self.power)


class _Recorder(Interpreter):
    """Remembers the scales of some operands, once for every turn of the loops around them."""

    def __init__(self, wanted: Mapping[Op, Collection[int]]) -> None:
        super().__init__()
        self.wanted = wanted
        self.seen: dict[Place, list[Scale]] = {}

    def step(self, op: Op, args: list[Scale]) -> Sequence[Scale]:
        if not self.context.rehearsals:
            for operand in self.wanted.get(op, ()):
                self.seen.setdefault((op, operand), []).append(args[operand])
        return super().step(op, args)


def activation_links(
    program: Program, spec: Spec, wanted: Mapping[Op, Collection[int]], loops: Mapping[Op, Shape]
) -> dict[Place, tuple[Link, ...]]:
    """The links of operands; axes count the turns of the enclosing loops first.

    Args:
        program: the traced function.
        spec: a spec that keeps the function.
        wanted: for each op the numbers of its operands.
        loops: for each op the lengths of the scans around it, outermost first.
    """
    recorder = _Recorder(wanted)
    context = recorder.context
    scales, owners = declared_scales(program, spec, context)
    declared = context.symbols
    state(program, recorder, scales)
    atoms, rows = quotient(
        context.symbols, [*(owner.base for owner in owners), declared], context.equations
    )
    system = System(atoms, declared)
    for row in rows:
        system.take(row)
    return {
        place: _links(seen, shape_of(place[0].inputs[place[1]]), loops[place[0]], system)
        for place, seen in recorder.seen.items()
    }


def _links(seen: list[Scale], shape: Shape, loops: Shape, system: System) -> tuple[Link, ...]:
    """The links of a value; turns of a loop that agree are not told apart."""
    if any(one.terms != seen[0].terms for one in seen) and len(seen) == np.prod(loops):
        return _stacked(seen, shape, loops, system)
    inner = [link for term in seen[-1].terms for link in _of_term(term, shape, system)]
    shifted = [Link(tuple(k + len(loops) for k in one.axes), one.ids, one.power) for one in inner]
    return _merged(shifted)


def _stacked(seen: list[Scale], shape: Shape, loops: Shape, system: System) -> tuple[Link, ...]:
    """The links of a value that differs from turn to turn: an axis for every loop in front."""
    out = []
    for turn, one in enumerate(seen):
        for term in one.terms:
            for link in _of_term(term, shape, system):
                ids = np.full((len(seen), *link.ids.shape), -1)
                ids[turn] = link.ids
                axes = (*range(len(loops)), *(axis + len(loops) for axis in link.axes))
                out.append(Link(axes, ids.reshape(*loops, *link.ids.shape), link.power))
    return _merged(out)


def _merged(links: list[Link]) -> tuple[Link, ...]:
    """Joins links of one power that nowhere name a position twice."""
    out: list[Link] = []
    for link in links:
        for k, other in enumerate(out):
            same = other.axes == link.axes and other.power == link.power
            if same and not ((other.ids >= 0) & (link.ids >= 0)).any():
                out[k] = Link(link.axes, np.maximum(other.ids, link.ids), link.power)
                break
        else:
            out.append(link)
    return tuple(out)


def _of_term(term: Term, shape: Shape, system: System) -> list[Link]:
    axes = tuple(k for k in range(len(shape)) if scale.depends(term, k, shape))
    symbols, reached = np.asarray(term.base), np.asarray(True)
    for axis in axes:
        shifts, hit = _along(term.axes[axis], shape[axis])
        symbols, reached = symbols[..., None] + shifts, reached[..., None] & hit
    symbols = np.where(reached, symbols, -1)
    parts = _declared(symbols, system)
    return [Link(axes, ids, float(power * term.power)) for power, ids in parts]


def _along(along: box.Along, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each position of an axis how far its symbol is from the base, and if it has one."""
    places, shifts = np.array([along.offset]), np.array([0])
    for dim in along.dims:
        steps = np.arange(dim.length)
        places = (places[:, None] + steps * dim.place).ravel()
        shifts = (shifts[:, None] + steps * dim.step).ravel()
    out, hit = np.zeros(size, np.int64), np.zeros(size, bool)
    out[places], hit[places] = shifts, True
    return out, hit


def _declared(symbols: np.ndarray, system: System) -> list[tuple[Power, np.ndarray]]:
    """Symbols as sums of powers of declared ones."""
    if symbols.max(initial=-1) < system.declared:
        return [(1, symbols)]
    atoms, out = system.atoms, []
    members = np.where(symbols < 0, -1, atoms.at(symbols))
    for atom in np.unique(members[members >= 0]).tolist():
        offset = symbols - atoms.starts[atom]
        for other, power in system.reduced([(atom, 1)]).items():
            if atoms.starts[other] < system.declared:
                own = atoms.starts[other] + (offset if atoms.sizes[other] > 1 else 0)
                out.append((power, np.where(members == atom, own, -1)))
    return out
