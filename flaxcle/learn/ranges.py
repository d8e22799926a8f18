"""`learn_ranges`: where to clip each activation, by the error of the quantized output.

    minimise   sum over batches of ||fn_quantized(x) - fn(x)||**2      over all low and high ends

A narrow range has small steps and clips more. What is best for a tensor depends on what reads it,
which no observer knows, and the straight-through gradients of `fake_quant` do. While they are
learned every bias is corrected on the spot, for a range that clips moves the means, and that is
for `correct_bias` to mend. The invariant: the result is never worse than the ranges passed in, by
the error over all batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxcle.bias.empirical import Reference, corrected_run, reference_run
from flaxcle.cache import compiled
from flaxcle.descent import descended
from flaxcle.errors import ConfigError
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree, squared_error
from flaxcle.quantize.calibrate import Batches, Calibration, listed
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.fake import check_names, ranges_of
from flaxcle.quantize.plan import make_plan

RATE = 0.01  # of log2 ends
CHECKS = 5  # of the error over all batches
Ends = tuple[dict[str, jax.Array], dict[str, jax.Array]]


def learn_ranges(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Batches,
    config: QuantConfig,
    calibration: Calibration,
    *,
    reference: PyTree | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
) -> Calibration:
    """Finds the ranges of activations with the least error at the quantized output.

        E = sum over batches of ||fn_quantized(params, x) - fn(reference, x)||**2

    by gradient descent on the logarithms of both ends of each range, one batch a step, where
    rounding passes gradients straight through, and where the mean of each layer's output is set
    to the float network's, as `correct_bias` does: correct the biases with the new ranges
    afterwards. An end at zero stays there.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params, equalized, with their weights rounded before or not.
        batches: calibration inputs, or tuples of inputs; never test data.
        config: the arithmetic.
        calibration: where to start from: `calibrate` of the same function.
        reference: the float params whose outputs are wanted; `params` when not given.
        optimizer: of optax, on the log2 factors of the ends; Adam with a cosine decay from 0.01.
        steps: how many it takes.

    Returns:
        The calibration with other `low` and `high`: those with the least E over all batches of
        all that were measured, which the ones passed in are among.

    Raises:
        CalibrationError: no batch, or a calibration of another function.
        ConfigError: no `act_bits`, or `steps` is negative.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jnp.minimum(x @ p["a"], 1) @ p["b"]
        >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x = jnp.linspace(0, 1, 64).at[-1].set(9.0).reshape(32, 2)
        >>> config = fc.QuantConfig(weight_bits=None, act_bits=4)
        >>> start = fc.calibrate(fn, params, [x], config)
        >>> learned = learn_ranges(fn, params, [x], config, start)
        >>> bool(learned.high["input_0"] < start.high["input_0"])
        True

    Source: Esser et al. 2020, "LSQ", arXiv:1902.08153; Bhalgat et al. 2020, "LSQ+",
    arXiv:2004.09576 (the gradients), here with frozen weights.
    """
    if config.act_bits is None:
        raise ConfigError(
            "learn_ranges needs a grid: QuantConfig.act_bits is None",
            then="pass the bits that the activations will have",
        )
    if steps < 0:
        raise ConfigError(f"steps can't be {steps!r}", then="pass 0 or more")
    data = listed(batches, "learning ranges needs at least one batch")
    check_names(make_plan(trace(fn, params, *data[0])), calibration)
    run, probe = compiled(_wanted, fn), compiled(_probe, fn, config)
    pairs = [(inputs, run(params if reference is None else reference, inputs)) for inputs in data]
    optimizer = optimizer or optax.adam(optax.cosine_decay_schedule(RATE, max(steps, 1)))

    def total(x: Ends) -> float:
        # The gradients go unused: compiling the error alone would take longer than they do.
        return sum(float(probe(x, params, calibration, *pair)[0]) for pair in pairs)

    x = tuple(jax.tree.map(jnp.zeros_like, end) for end in (calibration.low, calibration.high))
    best, least, state = x, total(x), optimizer.init(x)
    for step in range(steps):
        _, gradient = probe(x, params, calibration, *pairs[step % len(pairs)])
        x, state = descended(optimizer.update, gradient, state, x)
        if (step + 1) % max(steps // CHECKS, 1) == 0 and (error := total(x)) < least:
            best, least = x, error
    return _moved(calibration, best)


def _wanted(fn: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> Reference:
    """What the float network does with one batch."""
    program = trace(fn, params, *inputs)
    return reference_run(program, make_plan(program), params, inputs)


def _probe(
    fn: Callable[..., Any],
    config: QuantConfig,
    x: Ends,
    params: PyTree,
    calibration: Calibration,
    inputs: tuple[Any, ...],
    wanted: Reference,
) -> tuple[jax.Array, Ends]:
    """The error on one batch, and its gradient."""
    program = trace(fn, params, *inputs)
    plan = make_plan(program)

    def error(x: Ends) -> jax.Array:
        feed = {**ranges_of(_moved(calibration, x)), **wanted.means}
        ran = corrected_run(program, plan, params, inputs, config, feed)
        return squared_error(ran.outputs, wanted.outputs)

    return jax.value_and_grad(error)(x)


def _moved(calibration: Calibration, x: Ends) -> Calibration:
    """Each end times its factor."""
    low, high = (
        {name: end * jnp.exp2(factors[name]) for name, end in ends.items()}
        for ends, factors in zip((calibration.low, calibration.high), x, strict=True)
    )
    return replace(calibration, low=low, high=high)
