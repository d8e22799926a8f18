"""BatchNorms by what they compute, however they are spelled.

    y = x r s - f m r s + b,    r = 1 / sqrt(f v + eps)

with leaves m (mean), v (variance) and, where there are any, s (scale) and b (bias), and a number f,
1 unless running averages are stored with the bias of their start. The invariant: every use of these
leaves lies inside a norm that was found, so that changing them together is safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flaxcle.fold.algebra import Atom, Monomial, Poly
from flaxcle.fold.forms import Form, Forms
from flaxcle.jaxpr import Op, Value
from flaxcle.jaxpr.frames import Frame
from flaxcle.jaxpr.layout import Layout
from flaxcle.rules.constants import Constants


class Norm(NamedTuple):
    """The leaves of a BatchNorm.

    Attributes:
        mean, var, scale, bias: their paths, `None` where there is no such leaf.
        scans: how many leading axes of the leaves are sliced off by scans.
        eps, dtype: what is added to the variance, and in which dtype.
        factor: what the function multiplies mean and var by.
    """

    mean: str
    var: str
    scale: str | None
    bias: str | None
    scans: int
    eps: float
    dtype: str
    factor: float

    @property
    def paths(self) -> tuple[str, ...]:
        """Its leaves."""
        return tuple(p for p in (self.mean, self.var, self.scale, self.bias) if p is not None)


@dataclass(frozen=True, eq=False)
class Use:
    """One place where a norm is applied: from `start` to `out`, on the channels of `layout`.

    `ops` are all that compute it, `scans` the loops that slice its leaves.
    """

    norm: Norm
    frame: Frame
    start: Value
    out: Value
    layout: Layout
    ops: frozenset[Op]
    scans: tuple[Op, ...]


def find_norms(graphs: Sequence[Frame]) -> dict[Norm, list[Use]]:
    """The norms that can be changed, and where each is applied."""
    constants, found = Constants(), defaultdict[Norm, list[Use]](list)
    for frame in graphs:
        for passed in frame.passed:
            if not passed.sliced and id(passed.outer) not in frame.leaves:
                constants.bind(passed.inner, passed.outer)
        for use in _uses(frame, constants):
            found[use.norm].append(use)
    return {norm: uses for norm, uses in found.items() if _is_closed(norm, uses, graphs)}


def _uses(frame: Frame, constants: Constants) -> Iterable[Use]:
    """The longest form of each norm: `x r s` alone is one, and `x r s + b` another."""
    longest: dict[tuple[int, str, str], Use] = {}
    forms = Forms(frame, constants)
    for op in frame.graph.flat:
        for form in forms.get(id(op.outputs[0]), ()) if len(op.outputs) == 1 else ():
            use = _use(op.outputs[0], form, frame)
            if use is None:
                continue
            key = (id(use.start), use.norm.mean, use.norm.var)
            if key not in longest or frame.only_consumer(longest[key].out) is op:
                longest[key] = use
    return longest.values()


def _use(out: Value, form: Form, frame: Frame) -> Use | None:
    parts = _parts(form.poly) if form.start is not None else None
    if parts is None or form.start is None or parts.root.layout is None:
        return None
    mean, var, scale, bias = (None if atom is None else str(atom.name) for atom in parts)
    scans = {leaf.scans for leaf in frame.leaves.values() if leaf.path in (mean, var, scale, bias)}
    if len(scans) != 1 or mean is None or var is None:
        return None
    (loops,) = scans
    root = parts.root
    norm = Norm(mean, var, scale, bias, len(loops), root.eps, root.dtype, root.factor)
    return Use(norm, frame, form.start, out, parts.root.layout, form.ops, loops)


class _Parts(NamedTuple):
    mean: Atom
    root: Atom
    scale: Atom | None
    bias: Atom | None


def _parts(poly: Poly) -> _Parts | None:
    """Reads `x r s - m r s + b`; `None` when the polynomial is anything else."""
    data = {monomial: a for monomial in poly for a, _ in monomial if a.kind == "data"}
    if len(data) != 1:
        return None
    ((first, x),) = data.items()
    gain = first - {(x, 1)}
    root = _single(frozenset(pair for pair in gain if pair[0].kind == "rsqrt"))
    scale = _single(frozenset(pair for pair in gain if pair[0].kind == "leaf"))
    mean = _single(*(m - gain for m, factor in poly.items() if factor < 0.0))
    bias = _single(*(m for m, factor in poly.items() if factor == 1.0 and m != first))
    if root is None or mean is None or mean.kind != "leaf":
        return None
    parts = _Parts(mean, root, scale, bias)
    aligned = len({part.layout for part in parts if part is not None}) == 1
    return parts if aligned and _written(parts, x) == poly else None


def _written(parts: _Parts, x: Atom) -> Poly:
    """The formula in its normal form."""
    gain = frozenset((part, 1) for part in (parts.root, parts.scale) if part is not None)
    poly: Poly = {gain | {(x, 1)}: 1.0, gain | {(parts.mean, 1)}: -parts.root.factor}
    return poly if parts.bias is None else {**poly, frozenset({(parts.bias, 1)}): 1.0}


def _single(*monomials: Monomial) -> Atom | None:
    """The atom that is all of the only monomial."""
    atoms = [unknown for monomial in monomials for unknown, _ in monomial]
    return atoms[0] if len(monomials) == 1 and len(atoms) == 1 else None


def _is_closed(norm: Norm, uses: Sequence[Use], graphs: Sequence[Frame]) -> bool:
    """Whether the leaves reach the outputs only through the uses."""
    inside = frozenset().union(*(use.ops for use in uses))
    ends = {id(use.out) for use in uses}
    for frame in graphs:
        todo = [key for key, leaf in frame.leaves.items() if leaf.path in norm.paths]
        while todo:
            for reader in frame.consumers.get(todo.pop(), ()):
                if reader is None or reader not in inside:
                    return False
                todo += [id(value) for value in reader.outputs if id(value) not in ends]
    return True
