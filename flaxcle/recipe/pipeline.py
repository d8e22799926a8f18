"""`quantize_recipe`: everything that helps a network survive its grid, and nothing that does not.

    fold -> expose clips -> prune -> equalize -> learn -> round -> calibrate -> correct biases

Every stage is a candidate: it is kept when the quantized output, with or without corrected biases,
is nearer to the float output on calibration data that the stage has not seen. The first three keep
the function and make room for the others, so that the search goes on behind them even where they
do harm alone. The invariant: the result is the best of all points on the way, of which the network
that was passed in is one.
"""

from __future__ import annotations

from typing import Any

from flaxcle.distill import distill_inputs
from flaxcle.errors import CalibrationError
from flaxcle.paths import PyTree
from flaxcle.quantize import QuantConfig
from flaxcle.quantize.calibrate import Batches, listed
from flaxcle.recipe.candidate import Function, Recipe
from flaxcle.recipe.stages import Data, Kitchen

MARGIN = 1.5  # real data reach further than data that look typical to every norm


def quantize_recipe(
    fn: Function,
    variables: PyTree,
    batches: Batches | None,
    config: QuantConfig,
    *,
    inputs: tuple[Any, ...] = (),
    rounding: bool | None = None,
) -> Recipe:
    """Makes a trained network ready for its integer grid, by all means that help it.

    Folds BatchNorm, gives clips a bound for each channel, zeroes dead channels, equalizes, learns
    the scales, rounds weights by their inputs (at the learned scales too where these lose before
    rounding), chooses the ranges of activations, learns them below 8 bits, and corrects biases. A
    quarter of the batches, at least one, is held back: the result has the least squared error of
    the quantized output there, `sum (fn_quantized - fn)**2`, measured with and without corrected
    biases, of which the lower counts.

    Args:
        fn: any function `fn(variables, *inputs)`.
        variables: its params; for Flax the whole tree, with live BatchNorm.
        batches: calibration inputs, or tuples of inputs; never test data. Two or more, else the
            single one is both seen and held back. `None` works without data: `distill_inputs`
            makes them out of what the BatchNorms remember, in minutes.
        config: the arithmetic.
        inputs: without batches, examples of the inputs of one; `jax.ShapeDtypeStruct` will do.
        rounding: whether to try `round_weights`, which takes as long as all the rest. When not
            given, it is tried, but without data at 8 bits, where distilled inputs are no guide.

    Returns:
        The function, its params and ranges, and a table of the stages.

    Raises:
        CalibrationError: no batch, activations that are not finite, or no data and no BatchNorm.
        WeightError: a weight holds NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jnp.maximum(x @ p["a"], 0) @ p["b"]
        >>> params = {"a": jnp.array([[8.0, 0.01]]), "b": jnp.array([[0.01], [8.0]])}
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> recipe = quantize_recipe(fn, params, [x[::2], x[1::2]], fc.QuantConfig())
        >>> recipe.stages.column("stage")[:2], bool(recipe.stages.column("kept")[4])
        (['as it is', 'fold BatchNorm'], True)
    """
    need = "the recipe needs at least one calibration batch"
    data = _distilled(fn, variables, inputs) if batches is None else listed(batches, need)
    if rounding is None:
        bits = config.weight_bits
        rounding = bits is not None and (batches is not None or bits < 8)
    margin = MARGIN if batches is None else 1.0
    return Kitchen(fn, variables, data, config, margin).cook(rounding)


def _distilled(fn: Function, variables: PyTree, inputs: tuple[Any, ...]) -> Data:
    if not inputs:
        raise CalibrationError(
            "without batches the recipe must know the shapes of the inputs",
            where="batches is None and inputs is empty",
            then="pass inputs=(jax.ShapeDtypeStruct(shape, dtype),), with 32 or more in a batch",
        )
    return distill_inputs(fn, variables, *inputs)
