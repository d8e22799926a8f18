"""Calibration data out of the network itself: inputs whose statistics are those of its norms.

A BatchNorm remembers the mean and the variance of what it saw in training. Noise is turned, by
gradient descent, into inputs that look the same to every norm:

    minimise  sum over norms of  mean_c ((mean_c - beta_c)**2 + (std_c - |gamma_c|)**2) / width_c**2

where mean and std are those behind the norm. The invariant: no data is seen, and the params stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcle.bias.statistics import find_uses, is_idle, remembered
from flaxcle.cache import compiled
from flaxcle.descent import descended
from flaxcle.errors import CalibrationError, ConfigError
from flaxcle.fold.match import Norm, Use
from flaxcle.jaxpr import Computed, Op, trace
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.paths import PyTree, is_float, named_leaves, wide_dtype
from flaxcle.prune.activity import probe
from flaxcle.ranges import rest_of

FLOOR = 0.1  # of the norm's typical deviation: dead channels must not count most
RATE = 0.1
TINY = 1e-12


def distill_inputs(
    fn: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    batches: int = 4,
    steps: int = 150,
    seed: int = 0,
    optimizer: optax.GradientTransformation | None = None,
) -> list[tuple[Any, ...]]:
    """Makes batches of inputs whose statistics behind every BatchNorm are the remembered ones.

        loss = sum over norms of  mean_c ((m_c - beta_c)**2 + (s_c - |gamma_c|)**2) / width_c**2

    `m` and `s` are mean and deviation behind the norm over the batch, `width` is `|gamma|`, at
    least a tenth of its root mean square. The inputs look like nothing; ranges and sensitivities
    measured on them are near to those of real data. Use real data where there are any.

    Args:
        fn: any function `fn(variables, *inputs)`.
        variables: its params with live BatchNorm, from before `fold_batch_norm`.
        inputs: example inputs of one batch; arrays or `jax.ShapeDtypeStruct`.
        batches: how many to make.
        steps: of gradient descent for each batch.
        seed: of the noise that it starts from.
        optimizer: of optax; Adam with a cosine decay from 0.1.

    Returns:
        As many tuples of inputs, of the shapes and dtypes of the example.

    Raises:
        CalibrationError: the network has no live BatchNorm, or an input is not of a float dtype.
        ConfigError: `batches` or `steps` is below 1.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, flaxcle as fc
        >>> net = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
        >>> like = jax.ShapeDtypeStruct((64, 3), jnp.float32)
        >>> variables = net.init(jax.random.key(0), jnp.ones((64, 3)))
        >>> made = fc.distill_inputs(net.apply, variables, like, batches=2, steps=20)
        >>> [x.shape for (x,) in made]
        [(64, 3), (64, 3)]

    Source: Cai et al. 2020, "ZeroQ", arXiv:2001.00281, eq. 3.
    """
    for name, number in (("batches", batches), ("steps", steps)):
        if number < 1:
            raise ConfigError(f"{name} can't be {number!r}", then="pass 1 or more")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), inputs)
    norms = _live_norms(fn, variables, like)
    descend = compiled(_descend, fn, norms, optimizer, steps)
    rng = np.random.default_rng(seed)
    return [descend(variables, probe(like, rng)) for _ in range(batches)]


def _live_norms(
    fn: Callable[..., Any], variables: PyTree, like: tuple[Any, ...]
) -> frozenset[Norm]:
    """The norms that remember something."""
    for leaf in jax.tree.leaves(like):
        if not is_float(leaf):
            raise CalibrationError(
                "inputs can be distilled for float dtypes only",
                where=f"an input is of shape {leaf.shape} and dtype {leaf.dtype}",
                then="pass calibration batches",
            )
    leaves = named_leaves(variables)
    norms = {use.norm for use in find_uses(trace(fn, variables, *like))}
    live = frozenset(norm for norm in norms if not is_idle(norm, leaves))
    if not live:
        raise CalibrationError(
            "without data, statistics must come from BatchNorms, and this network has no live one",
            where=f"{len(leaves)} leaves, {len(norms)} folded norms",
            then="pass the variables from before folding, or calibration batches",
        )
    return live


def _descend(
    fn: Callable[..., Any],
    norms: frozenset[Norm],
    optimizer: optax.GradientTransformation | None,
    steps: int,
    variables: PyTree,
    start: tuple[Any, ...],
) -> tuple[Any, ...]:
    rule = optimizer or optax.adam(optax.cosine_decay_schedule(RATE, steps))
    slope = jax.grad(partial(_misfit, fn, norms, variables))

    def step(_: int, carry: Any) -> Any:
        x, state = carry
        return descended(rule.update, slope(x), state, x)

    return jax.lax.fori_loop(0, steps, step, (start, rule.init(start)))[0]


def _misfit(
    fn: Callable[..., Any], norms: frozenset[Norm], variables: PyTree, inputs: tuple[Any, ...]
) -> jax.Array:
    """How far the statistics behind the norms are from those that they remember."""
    program = trace(fn, variables, *inputs)
    leaves = named_leaves(variables)
    uses = {use: op for use, op in find_uses(program).items() if use.norm in norms}
    quick = {op: Computed() for op in program.graph.flat if op.primitive in CONTRACTIONS}
    taps = {op: _Tap(str(number), use, leaves) for number, (use, op) in enumerate(uses.items())}
    found = program.run(variables, inputs, {**quick, **taps}).taps
    return jnp.sum(jnp.stack(list(found.values())))


class _Tap:
    """Action: report the misfit behind a norm."""

    feeds: tuple[str, ...] = ()

    def __init__(self, name: str, use: Use, leaves: Mapping[str, Any]) -> None:
        self.name, self.use = name, use
        wide = {p: leaves[p].astype(wide_dtype(leaves[p].dtype)) for p in use.norm.paths}
        self.mean, self.std = remembered(use, wide)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        (out,) = op.bind(*operands)
        x = out.astype(wide_dtype(out.dtype))
        rest = rest_of(x.ndim, self.use.layout.axes)
        mean, square = jnp.mean(x, rest, keepdims=True), jnp.var(x, rest, keepdims=True)
        off = (mean - self.mean) ** 2 + (jnp.sqrt(square + TINY) - self.std) ** 2
        width = jnp.maximum(self.std**2, FLOOR**2 * jnp.mean(self.std**2))
        return [out], {self.name: jnp.mean(off / jnp.maximum(width, TINY))}
