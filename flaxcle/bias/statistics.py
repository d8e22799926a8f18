"""The statistics that BatchNorms carry: behind a live norm, mean beta and deviation |gamma|.

Once the norm is folded and its channels were rescaled, it no longer says so. Then the variables
from before tell: both compute the same function, so at that point the values are

    after = slope * before + shift        per channel, measured on noise,

and the statistics become slope * beta + shift and |slope * gamma|. The invariant: a point where
no such line fits to rounding has no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxcle.bias.moments import Known, gaussian
from flaxcle.errors import TraceError
from flaxcle.fold.match import Norm, Use, find_norms
from flaxcle.fold.move import unit_variance
from flaxcle.jaxpr import Op, Program
from flaxcle.jaxpr.frames import frames
from flaxcle.paths import PyTree, named_leaves
from flaxcle.prune.activity import probe

_SEEDS = range(4)
_MISFIT = 1e-5


def norm_statistics(
    program: Program, variables: PyTree, before: PyTree | None, inputs: Sequence[Any]
) -> dict[int, Known]:
    """What BatchNorms say of the values behind them, by id of the value.

    Raises:
        TraceError: `before` has another structure than the variables.
    """
    if before is not None:
        _check_structure(variables, before)
    leaves = named_leaves(variables if before is None else before)
    makers = {u: op for u, op in find_uses(program).items() if not is_idle(u.norm, leaves)}
    wide = {p: np.asarray(leaves[p], np.float64) for use in makers for p in use.norm.paths}
    own = {use: remembered(use, wide) for use in makers}
    if before is not None:
        lines = _lines(program, variables, before, inputs, makers)
        own = {use: _mapped(own[use], line) for use, line in lines.items() if line is not None}
    return {
        id(use.out): gaussian(mean, std**2, id(use.out), use.out.dtype)
        for use, (mean, std) in own.items()
    }


def find_uses(program: Program) -> dict[Use, Op]:
    """The norms outside of loops, and the op whose result is theirs."""
    found = find_norms(frames(program))
    uses = [use for own in found.values() for use in own if not use.frame.scans]
    makers = {id(op.outputs[0]): op for op in program.graph.flat}
    return {use: makers[id(use.out)] for use in uses if id(use.out) in makers}


def per_channel(use: Use, leaf: Any) -> Any:
    """A leaf of the norm, shaped to meet its result."""
    sizes = enumerate(use.out.shape)
    shape = [size if axis in use.layout.axes else 1 for axis, size in sizes]
    return leaf.ravel()[np.asarray(use.layout.index)].reshape(shape)


def _check_structure(variables: PyTree, before: PyTree) -> None:
    trees = [jax.tree.structure(tree) for tree in (variables, before)]
    if trees[0] != trees[1]:
        raise TraceError(
            "the variables from before have another structure than those to correct",
            where=f"got {trees[1]}, and the function takes {trees[0]}",
            then="pass the variables of this same function from before folding; call "
            "expose_clips, which adds a collection, before that",
        )


def is_idle(norm: Norm, leaves: Mapping[str, Any]) -> bool:
    """Whether the norm was folded: it subtracts nothing and divides by one."""
    mean, var = np.asarray(leaves[norm.mean]), np.asarray(leaves[norm.var])
    return not mean.any() and bool((var == unit_variance(norm, leaves[norm.var])).all())


Statistics = tuple[np.ndarray, np.ndarray]


def remembered(use: Use, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """Mean and deviation behind a live norm, shaped to meet its result."""
    norm, none = use.norm, leaves[use.norm.mean] * 0
    shift = leaves[norm.bias] if norm.bias else none
    scale = leaves[norm.scale] if norm.scale else none + 1
    return per_channel(use, shift), abs(per_channel(use, scale))


class _Line(NamedTuple):
    """`after = slope * before + shift`, per channel."""

    slope: np.ndarray
    shift: np.ndarray


def _mapped(statistics: Statistics, line: _Line) -> Statistics:
    mean, std = statistics
    return line.slope * mean + line.shift, np.abs(line.slope) * std


class _Tap:
    """Action: report the result."""

    feeds = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        outputs = op.bind(*operands)
        return outputs, {self.name: outputs[0]}


def _lines(
    program: Program,
    variables: PyTree,
    before: PyTree,
    inputs: Sequence[Any],
    makers: Mapping[Use, Op],
) -> dict[Use, _Line | None]:
    """The line at each norm, from the values of both on the same noise."""
    names = {use: str(number) for number, use in enumerate(makers)}
    actions = {op: _Tap(names[use]) for use, op in makers.items()}
    run = jax.jit(lambda tree, args: program.run(tree, args, actions).taps)
    probes = [probe(inputs, seed) for seed in _SEEDS]
    taps = [[run(tree, args) for args in probes] for tree in (before, variables)]
    return {
        use: _line(*(_rows(use, [tap[name] for tap in of]) for of in taps))
        for use, name in names.items()
    }


def _rows(use: Use, values: Sequence[Any]) -> np.ndarray:
    """Values of all the runs, the first axes being their places and the rest the channels."""
    rest = tuple(k for k in range(len(use.out.shape)) if k not in use.layout.axes)
    kept = [n if k in use.layout.axes else 1 for k, n in enumerate(use.out.shape)]
    order = (*rest, *use.layout.axes)
    wide = (np.asarray(value).astype(np.float64).transpose(order) for value in values)
    return np.concatenate([array.reshape(-1, *kept) for array in wide])


def _line(before: np.ndarray, after: np.ndarray) -> _Line | None:
    """The line through (before, after) per channel; None where the points don't lie on one.

    A channel that noise does not move keeps the ratio of its constants.
    """
    middle, target = before.mean(0), after.mean(0)
    one, two = before - middle, after - target
    power, level = (one**2).mean(0), (before**2).mean(0)
    moves = power > _MISFIT**2 * level
    slope = (one * two).mean(0) / np.where(moves, power, 1.0)
    ratio = target / np.where(middle == 0, 1.0, middle) * (middle != 0)
    slope = np.where(moves, slope, ratio)
    misfit = ((two - slope * one) ** 2).mean(0)
    if not (misfit <= _MISFIT**2 * (after**2).mean(0)).all():
        return None
    return _Line(slope, target - slope * middle)
