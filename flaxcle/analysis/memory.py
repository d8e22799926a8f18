"""The bytes of a network, float against integers, from shapes alone.

    weights       every leaf of params; those that a quantizer reads have weight_bits
    activations   what contractions and residual adds read and write, at act_bits

Biases, norms and tables that are looked up stay as they are, and the few scales of the grids are
left out. The invariant: the float weights add up to the bytes of all leaves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.jaxpr import Graph, Op, Program, Value, trace
from flaxcle.paths import PyTree, parent, strip_collection
from flaxcle.quantize import QuantConfig
from flaxcle.quantize.plan import Plan, make_plan
from flaxcle.tables import Table

COLUMNS = (
    "layer",
    "weights float B",
    "weights int B",
    "activations float B",
    "activations int B",
)
ALL = "(all)"


def memory_table(
    fn: Callable[..., Any], params: PyTree, config: QuantConfig, *inputs: Any
) -> Table:
    """The bytes of weights and of activations, layer by layer, as they are and as integers.

    Nothing is computed: leaves of `params` and `inputs` may be `jax.ShapeDtypeStruct`.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params.
        config: `weight_bits` and `act_bits`; a half byte counts as one half.
        inputs: examples of the inputs; activations are those of one such batch.

    Returns:
        One row for each layer, the layer `'(all)'` last. Weights are the stored leaves, with
        biases and norms in their own dtype. Activations are the bytes that the layer's products
        and residual sums read and write, all turns of a `scan` together; what lies between, such
        as a ReLU or a softmax, is taken for fused.

    Raises:
        TraceError: no output depends on any param.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"] + p["bias"]
        >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones((1, 4))}
        >>> print(fc.memory_table(fn, params, fc.QuantConfig(), jnp.ones((2, 8))))
        layer   weights float B  weights int B  activations float B  activations int B
        kernel              128             32                   96                 24
        bias                 16             16                    0                  0
        (all)               144             48                   96                 24
    """
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    bytes_of: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4, int))
    for layer, values, turns in _traffic(program, plan):
        bytes_of[layer][2:] += turns * sum(_pair(value, config.act_bits) for value in values)
    quantized = {fact.leaf: plan.at[op][k].layer for op, k, fact in plan.weights()}
    for path, value in program.params.items():
        bits = config.weight_bits if path in quantized else None
        bytes_of[quantized.get(path) or _module(path)][:2] += _pair(value, bits)
    bytes_of[ALL] = np.sum(list(bytes_of.values()), axis=0)
    rows = ((layer, *map(int, row)) for layer, row in bytes_of.items())
    return Table(COLUMNS, tuple(rows))


def _traffic(program: Program, plan: Plan) -> Iterator[tuple[str, list[Value], int]]:
    """Of every op that reads activations: its layer, what it reads and writes, how many times."""
    for op, turns in _repeated(program.graph, 1):
        if op in plan.at:
            read = [op.inputs[k] for k, quantizer in plan.at[op].items() if not quantizer.weight]
            yield plan.layers[op], [*read, op.outputs[0]], turns


def _repeated(graph: Graph, turns: int) -> Iterator[tuple[Op, int]]:
    """All ops with the number of times that they run; every branch counts."""
    for op in graph.flat:
        yield op, turns
        for body in op.bodies:
            yield from _repeated(body, turns * op.params.get("length", 1))


def _pair(value: Value, bits: int | None) -> np.ndarray:
    """The bytes of an array, in its dtype and in integers."""
    size = prod(value.shape)
    own = size * jnp.dtype(value.dtype).itemsize
    return np.array([own, own if bits is None else -(-size * bits // 8)])


def _module(path: str) -> str:
    path = strip_collection(path)
    return parent(path) or path
