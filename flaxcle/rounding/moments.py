"""What a layer's inputs look like: their second moment, out of one pass over the calibration data.

    C = E[x x^T]         per layer and group, x the inputs of one output position

For a convolution x is the patch under the kernel, zeros of the padding included. The mean stays in,
so that rounding keeps the means of the outputs, which errors of the next layers build upon. The
invariant: the inputs are arranged as those of the reader's stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.cache import compiled
from flaxcle.jaxpr import Op, computed, trace
from flaxcle.paths import PyTree, wide_dtype
from flaxcle.rounding.readers import Reader, find_readers

Moments = dict[str, jax.Array]
LARGEST = 2**26
_KEYS = ("count", "product")


class _Watch:
    """Action: run the op and report the moments of its inputs."""

    feeds: tuple[str, ...] = ()

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        x = _inputs(op, 1 - self.reader.operand, jnp.asarray(operands[1 - self.reader.operand]))
        x = x.astype(wide_dtype(x.dtype))
        squares = jnp.einsum("gni,gnj->gij", x, x, precision=jax.lax.Precision.HIGHEST)
        values = (jnp.asarray(x.shape[1], x.dtype), squares)
        taps = {f"{self.reader.name}:{k}": v for k, v in zip(_KEYS, values, strict=True)}
        return computed(op, *operands), taps


def second_moments(
    fn: Callable[..., Any], params: PyTree, data: Iterable[tuple[Any, ...]]
) -> dict[str, jax.Array]:
    """Leaf -> C (layers, groups, inputs, inputs) over all data and readers."""
    one = compiled(_of_batch, fn)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    moments: Any = None
    for inputs in data:
        new = one(params, inputs)
        moments = new if moments is None else add(moments, new)
    return {leaf: _mean(total) for leaf, total in moments.items()}


def _of_batch(
    fn: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]
) -> dict[str, Moments]:
    program = trace(fn, params, *inputs)
    readers = {op: r for op, r in find_readers(program).items() if is_small(r)}
    taps = program.run(params, inputs, {op: _Watch(r) for op, r in readers.items()}).taps
    total: dict[str, Moments] = {}
    for reader in readers.values():
        old = total.get(reader.leaf)
        new = _of_leaf(reader, taps)
        total[reader.leaf] = new if old is None else jax.tree.map(jnp.add, old, new)
    return total


def is_small(reader: Reader) -> bool:
    """Whether the second moment of one layer fits into memory."""
    _, groups, _, inputs = reader.stack.shape
    return groups * inputs * inputs <= LARGEST


def _of_leaf(reader: Reader, taps: Mapping[str, jax.Array]) -> Moments:
    """The moments per layer of the leaf; a branch that was not taken adds nothing."""
    loops, layers = len(reader.shared), reader.stack.shape[0]
    shared = tuple(k for k, same in enumerate(reader.shared) if same)
    missed = jnp.isnan(taps[f"{reader.name}:count"])
    out = {}
    for key in _KEYS:
        tap = taps[f"{reader.name}:{key}"]
        seen = jnp.where(missed.reshape(missed.shape + (1,) * (tap.ndim - loops)), 0, tap)
        out[key] = jnp.sum(seen, shared).reshape(layers, *tap.shape[loops:])
    return out


@jax.jit
def _mean(total: Moments) -> jax.Array:
    return total["product"] / jnp.maximum(total["count"], 1)[:, None, None, None]


def _inputs(op: Op, operand: int, x: jax.Array) -> jax.Array:
    """The op's data as (groups, positions, inputs), in the order of the reader's stack."""
    if op.primitive == "conv_general_dilated":
        return _patches(op, x)
    contracted, batch = (dims[operand] for dims in op.params["dimension_numbers"])
    free = [d for d in range(x.ndim) if d not in (*contracted, *batch)]
    sizes = [prod(x.shape[d] for d in dims) for dims in (batch, free, contracted)]
    return x.transpose(*batch, *free, *contracted).reshape(sizes)


def _patches(op: Op, x: jax.Array) -> jax.Array:
    """What is under the kernel at each position: one strided slice per tap."""
    numbers, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    batch, features, *space = numbers.lhs_spec
    x = x.transpose(batch, *space, features)
    edges = zip(op.params["padding"], op.params["lhs_dilation"], strict=True)
    pads = [(0, 0, 0), *((low, high, step - 1) for (low, high), step in edges), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    taps = [op.inputs[1].shape[d] for d in numbers.rhs_spec[2:]]
    sizes = [op.outputs[0].shape[d] for d in numbers.out_spec[2:]]
    slices = [_slice(op, x, tap, sizes) for tap in product(*map(range, taps))]
    patches = jnp.stack(slices, 1).reshape(-1, len(slices), groups, x.shape[-1] // groups)
    return patches.transpose(2, 0, 1, 3).reshape(groups, patches.shape[0], -1)


def _slice(op: Op, x: jax.Array, tap: tuple[int, ...], sizes: list[int]) -> jax.Array:
    """What one tap of the kernel meets, as (positions, features)."""
    strides = op.params["window_strides"]
    starts = [k * step for k, step in zip(tap, op.params["rhs_dilation"], strict=True)]
    ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, sizes, strides, strict=True)]
    window = jax.lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1))
    return window.reshape(-1, x.shape[-1])
