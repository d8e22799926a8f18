"""The walk through the function: what is known of each value, and the errors that biases take up.

Floating inputs are standard normal; a value with statistics of its own (behind a BatchNorm) is
Gaussian with those. The invariant: an op without a rule makes its result unknown, and what is
computed from that stays unknown up to the next statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd
from flaxcle.bias.moments import elementwise, layout, sums
from flaxcle.bias.moments.known import Known, constant, gaussian
from flaxcle.jaxpr import Op, Program, Value
from flaxcle.jaxpr.graph import CONTRACTIONS

Rule = Callable[[Op, Sequence[Known]], Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.ELEMENTWISE, elementwise.elementwise),
    **dict.fromkeys(
        ("transpose", "broadcast_in_dim", "squeeze", "reshape", "rev", "slice"), layout.view
    ),
    "concatenate": layout.concatenate,
    "split": layout.split,
    "pad": layout.pad,
    "reduce_sum": sums.reduce_sum,
    "reduce_window_sum": sums.reduce_window_sum,
    "reduce_max": sums.maximum,
    "reduce_window_max": sums.maximum,
}


def propagate(
    program: Program,
    leaves: Mapping[str, Any],
    statistics: Mapping[int, Known],
    adds: Mapping[Op, BiasAdd],
    snap: sums.Snap,
) -> tuple[dict[int, Known], dict[Op, np.ndarray]]:
    """Walks the program.

    Args:
        program: the traced function.
        leaves: the values of its params by path.
        statistics: what is known beforehand, by id of the value.
        adds: the bias adds; each takes up the error that reaches it.
        snap: rounds the weight at an op's operand to its grid.

    Returns:
        What is known by id of the value, and the errors by bias add, of the shape of its result.
    """
    walk = _Walk(program, leaves, statistics, adds, snap)
    for op in program.graph.flat:
        walk.step(op)
    return walk.known, walk.errors


class _Walk:
    def __init__(
        self,
        program: Program,
        leaves: Mapping[str, Any],
        statistics: Mapping[int, Known],
        adds: Mapping[Op, BiasAdd],
        snap: sums.Snap,
    ) -> None:
        self.known: dict[int, Known] = {}
        self.errors: dict[Op, np.ndarray] = {}
        self.statistics, self.adds, self.snap = statistics, adds, snap
        for path, value in program.params.items():
            self.known[id(value)] = Known(jnp.asarray(leaves[path])[None])
        for value in program.inputs:
            if jnp.issubdtype(value.dtype, jnp.floating):
                ones = np.ones((1,) * len(value.shape))
                self.known[id(value)] = gaussian(0 * ones, ones, id(value), value.dtype)

    def step(self, op: Op) -> None:
        """Learns the results of an op."""
        operands = [self._of(value) for value in op.inputs]
        found = self._apply(op, [o for o in operands if o is not None])
        for value, known in zip(op.outputs, found, strict=True):
            if known is not None and op in self.adds and known.error is not None:
                self.errors[op] = np.broadcast_to(known.error, known.shape)
                known = known.with_error(None)
            error = known.error if known is not None else None
            if id(value) in self.statistics:
                known = self.statistics[id(value)].with_error(error)
            if known is not None:
                self.known[id(value)] = known

    def _of(self, value: Value) -> Known | None:
        if id(value) not in self.known and value.known:
            self.known[id(value)] = constant(jnp.asarray(value.const))
        return self.known.get(id(value))

    def _apply(self, op: Op, operands: Sequence[Known]) -> Sequence[Known | None]:
        unknown = [None] * len(op.outputs)
        if len(operands) < len(op.inputs):
            return unknown
        if op.primitive in CONTRACTIONS and any(o.latent is not None for o in operands):
            return [sums.contraction(op, operands, self.snap)]
        if op.primitive in RULES:
            found = RULES[op.primitive](op, operands)
            return found if isinstance(found, list) else [found]
        if all(operand.latent is None for operand in operands):
            pairs = zip(operands, op.inputs, strict=True)
            arrays = [jnp.broadcast_to(o.points[0], value.shape) for o, value in pairs]
            return [constant(jnp.asarray(out)) for out in op.bind(*arrays)]
        return unknown
