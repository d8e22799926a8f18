"""Rounding of all weights of a network: what their inputs look like, then one search per shape.

The invariant: nothing but weights that can be rounded on their own changes, and all of these lie
on the grid that quantization gives to the old weights and finds again on the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate, chain
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxcle.errors import CalibrationError, ConfigError, WeightError
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree, named_leaves, replace_leaves
from flaxcle.quantize.calibrate import Batches, as_inputs, no_batch
from flaxcle.quantize.config import QuantConfig
from flaxcle.rounding.choices import find_choices
from flaxcle.rounding.moments import second_moments
from flaxcle.rounding.readers import Stack, find_readers
from flaxcle.rounding.search import damped, search

_OPTIMIZER = optax.adam(1e-2)


def round_weights(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Batches,
    config: QuantConfig,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 500,
) -> PyTree:
    """Rounds every weight up or down, so that each layer's output changes least.

    With e = w_rounded - w and C = E[x x^T] of a layer's inputs over the calibration data, the
    choice minimises `e^T H e`, H = C + 0.01 mean(diag C) I, for each output of each layer: first
    by gradient on a relaxed choice, then weight by weight. Nearest rounding minimises it for
    uncorrelated inputs only. The network runs once over the data and not at all in the search.

    The grid is the one that `config` gives to the float weights; quantization finds it again on
    the rounded ones, so use them with the same `config`.

    Weights stay as they are where something other than convolutions and matrix products reads
    them (an embedding that is also the output layer), where two readers see them in another
    arrangement, or as more than a transposition. A layer whose H had more than 2**26 elements is
    rounded to nearest. bfloat16 holds the grid values of up to 8 bits to half a step.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: float params, equalized before.
        batches: calibration inputs, or tuples of inputs; more of them than a layer has inputs.
        config: `weight_bits`, granularity and symmetry; `weight_observer` `"minmax"` or `"mse"`.
        optimizer: of the relaxed choice; `optax.adam(1e-2)` when not given.
        steps: how many it takes.

    Returns:
        Params of the same structure and dtypes; weights are on the grid.

    Raises:
        ConfigError: no `weight_bits`, the observer `"percentile"`, or `steps` below 1.
        CalibrationError: no batch, or NaN or infinite activations.
        WeightError: a weight holds NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params = {"kernel": jnp.array([[1.0], [0.4], [0.3]])}
        >>> x = jnp.array([[0.0, 1.0, 1.0], [0.0, -1.0, -1.0]])
        >>> fc.round_weights(fn, params, [x], fc.QuantConfig(weight_bits=2))["kernel"].T.tolist()
        [[1.0, 1.0, 0.0]]

    Source: Nagel et al. 2020, arXiv:2004.10568: the local loss of section 3.2 with the relaxation
    of section 3.3 (eq. 21 to 24); the second moment of the inputs stands for the data.
    """
    _check(config, steps)
    data = map(as_inputs, batches)
    first = next(data, None)
    if first is None:
        raise no_batch("rounding needs at least one batch")
    stacks = {r.leaf: r.stack for r in find_readers(trace(fn, params, *first)).values()}
    leaves = named_leaves(params)
    weights = {path: stack.of(leaves[path]) for path, stack in stacks.items()}
    _check_finite(weights, WeightError, "can't round a weight that holds NaN or infinity")
    inputs = second_moments(fn, params, chain([first], data))
    _check_finite(inputs, CalibrationError, "the float network gives NaN or infinite activations")
    new: dict[str, jax.Array] = {}
    for paths in _by_shape(stacks):
        new |= _round(
            {p: weights[p] for p in paths}, inputs, config, optimizer or _OPTIMIZER, steps
        )
    return replace_leaves(params, {p: stacks[p].back(new[p], leaves[p]) for p in stacks})


def _by_shape(stacks: Mapping[str, Stack]) -> Iterable[list[str]]:
    """The leaves whose matrices have the same shape and are searched at once."""
    groups: dict[Any, list[str]] = {}
    for path, stack in stacks.items():
        groups.setdefault((stack.shape[1:], stack.dtype), []).append(path)
    return groups.values()


def _round(
    weights: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
    config: QuantConfig,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> dict[str, jax.Array]:
    """Stacks of one shape, rounded; what their inputs look like is known of all or of none."""
    known = [inputs[path] for path in weights if path in inputs]
    moment = jnp.concatenate(known) if known else None
    stack = jnp.concatenate(list(weights.values()))
    new = _rounded(stack, moment, config, optimizer, steps)
    ends = list(accumulate(len(w) for w in weights.values()))
    return dict(zip(weights, jnp.split(new, ends[:-1]), strict=True))


@partial(jax.jit, static_argnames=("config", "optimizer", "steps"))
def _rounded(
    stack: jax.Array,
    moment: jax.Array | None,
    config: QuantConfig,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> jax.Array:
    choices = find_choices(stack, config)
    if moment is None:
        return choices.weights(choices.nearest())
    hessian = damped(moment.astype(choices.exact.dtype))
    return choices.weights(search(choices, hessian, optimizer, steps))


def _check(config: QuantConfig, steps: int) -> None:
    if config.weight_bits is None:
        raise ConfigError(
            "round_weights needs a grid: QuantConfig.weight_bits is None",
            then="pass the bits that the weights will have",
        )
    if config.weight_observer == "percentile":
        raise ConfigError(
            "round_weights can't keep the range of the observer 'percentile'",
            where="the percentile of rounded weights is another one",
            then="use the observer 'minmax', or 'mse' to clip",
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps can't be {steps!r}", then="pass a positive integer")


def _check_finite(
    arrays: Mapping[str, jax.Array], error: type[CalibrationError | WeightError], what: str
) -> None:
    broken = [path for path, finite in _finite(arrays).items() if not finite]
    if broken:
        raise error(
            what,
            where=", ".join(map(repr, broken)),
            then="check the checkpoint and the calibration inputs",
        )


@jax.jit
def _finite(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(x).all() for path, x in arrays.items()}
