"""Why an axis of a leaf can't be rescaled, in words.

Every class that is fixed was fixed by some equation; the first one in program order is the reason,
and the operation that stated it says what it demands. The invariant: the text names the operation
as the user wrote it (`gelu`, not `tanh`) wherever the call has a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flaxcle.discover.atoms import Atoms
from flaxcle.discover.classes import Classes, Combination
from flaxcle.discover.symbols import Block
from flaxcle.jaxpr import Op
from flaxcle.rules.context import Why
from flaxcle.spec import Blocked, Group

NONLINEAR = (
    *("celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid"),
    *("log_softmax", "logsumexp", "mish", "relu6", "selu", "sigmoid", "silu", "soft_sign"),
    *("softmax", "softplus", "sparse_plus", "squareplus", "swish", "tanh"),
)


def blocked_axes(
    blocks: Sequence[Block],
    atoms: Atoms,
    moves: Mapping[int, Combination],
    classes: Classes,
    whys: Sequence[Why],
    groups: Iterable[Group],
) -> tuple[Blocked, ...]:
    """One row for every axis of a leaf that no group moves."""
    moved = {(s.path, a) for group in groups for s in group.sites for a in s.axes}
    out: dict[tuple[str, int], Blocked] = {}
    for block in blocks:
        for axis in block.role.axes or (0,):
            key = (block.leaf, axis)
            if key not in moved and key not in out:
                out[key] = _blocked(block, axis, atoms, classes, whys)
    return tuple(out.values())


def _blocked(
    block: Block, axis: int, atoms: Atoms, classes: Classes, whys: Sequence[Why]
) -> Blocked:
    roots = [classes.find(atom)[0] for atom in atoms.within(block.base, block.size)]
    fixed = [classes.fixed[root] for root in roots if root in classes.fixed]
    tied = [classes.tied[root] for root in roots if root in classes.tied]
    why = whys[min(fixed or tied)] if fixed or tied else Why("cancels")
    op = why.op
    if op is None:
        return Blocked(block.leaf, axis, explain(why))
    return Blocked(block.leaf, axis, explain(why), op.primitive, op.scope, op.source)


def explain(why: Why) -> str:
    """The sentence for the user."""
    if why.op is None:
        return WITHOUT_OP[why.kind]
    call = named_call(why.op)
    if call and why.kind in ("opaque", "equal", "compare", "along"):
        return f"{call} is not positively homogeneous"
    return _equal(why) if why.kind == "equal" else TEXTS[why.kind].format(why.op.primitive)


def named_call(op: Op) -> str:
    """The outermost function of `jax.nn` around an operation that no scale passes, as 'gelu'."""
    return next((call for call in reversed(op.within) if call in NONLINEAR), "")


WITHOUT_OP = {
    "output": "it scales an output of the function, which must not change",
    "cancels": "what it changes is undone by another factor of the same leaf",
}


def _equal(why: Why) -> str:
    name = why.op.primitive if why.op else ""
    if why.detail:
        return f"'{name}' combines it with the constant {why.detail}"
    return f"'{name}' needs equal scales on its operands, and one of them is fixed"


TEXTS = {
    "opaque": "'{}' is not positively homogeneous",
    "compare": "'{}' compares it with a value of another scale",
    "along": "'{}' mixes its channels, so that they must share one scale",
    "sum": "'{}' sums its products with a tensor whose scale is fixed",
    "lookup": "'{}' reads it at positions that depend on data",
    "carry": "a step of '{}' must leave its scale unchanged",
    "branch": "all branches of '{}' must return the same scale",
    "unknown": "no rule says how a scale passes '{}'",
    "irregular": "'{}' moves its elements in an irregular pattern",
}
