"""Bias correction: the mean error that quantization adds to each channel goes into its bias.

    b += E[y_float] - E[y_quantized]        per output channel, over the calibration data

Layer by layer, with all earlier layers quantized and corrected, in one pass: while the quantized
function runs on a batch, every bias add compares its mean with the float network's and takes the
difference at once. The invariant: only biases change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd, find_bias_adds
from flaxcle.cache import compiled
from flaxcle.jaxpr import Computed, Op, Program, trace
from flaxcle.paths import PyTree, named_leaves, replace_leaves, wide_dtype
from flaxcle.quantize.calibrate import Batches, Calibration, as_inputs, calibrate
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.fake import ranges_of, run_quantized
from flaxcle.quantize.flow import follow
from flaxcle.quantize.plan import Plan, make_plan


def correct_bias(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Batches,
    config: QuantConfig,
    *,
    reference: PyTree | None = None,
) -> PyTree:
    """Moves the mean quantization error of every layer into its bias.

    Per layer and output channel, `b += E[y_float] - E[y_quantized]`, where all earlier layers are
    already quantized and corrected. Biases are those that are added to the result of a
    convolution or matrix product (with only per-channel arithmetic in between): a layer's own
    bias, or that of the BatchNorm behind it. A layer without any bias keeps its error.

    Run it last, with the float params, on calibration data, never on test data. Use the corrected
    params with a calibration that was made before: the quantized network then has the float
    network's statistics. After `round_weights` the float params from before it are the `reference`:
    the rounded ones are already on their grid and know nothing of its error.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: float params, equalized before.
        batches: calibration inputs, or tuples of inputs; 250 images are plenty.
        config: the arithmetic that the network will run in.
        reference: the float params whose means are restored; `params` when not given.

    Returns:
        Params of the same structure and dtypes; only biases differ.

    Raises:
        CalibrationError: no batch.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"] + p["bias"]
        >>> params = {"kernel": jnp.array([[1.0], [0.2]]), "bias": jnp.zeros(1)}
        >>> config = fc.QuantConfig(weight_bits=2, act_bits=None)
        >>> fc.correct_bias(fn, params, [jnp.ones((4, 2))], config)["bias"].round(3).tolist()
        [0.20000000298023224]

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical).
    """
    data = [as_inputs(batch) for batch in batches]
    target = params if reference is None else reference
    return corrected(fn, params, target, data, config, calibrate(fn, target, data, config))


def corrected(
    fn: Callable[..., Any],
    params: PyTree,
    reference: PyTree,
    data: Sequence[tuple[Any, ...]],
    config: QuantConfig,
    calibration: Calibration,
) -> PyTree:
    """`correct_bias` with ranges that are known."""
    shifts, ranges = compiled(_shifts, fn, config), ranges_of(calibration)
    totals = _totals((shifts(params, reference, ranges, inputs), inputs) for inputs in data)
    adds = find_bias_adds(follow(trace(fn, params, *data[0])))
    return _shifted(params, list(adds.values()), totals)


class Reference(NamedTuple):
    """What the float network does with a batch: its outputs, and the mean of each biased sum."""

    outputs: list[jax.Array]
    means: dict[str, Any]


class Corrected(NamedTuple):
    """Outputs of the quantized network, and how far its biases had to move."""

    outputs: list[jax.Array]
    shifts: dict[str, Any]


def reference_run(
    program: Program, plan: Plan, params: PyTree, inputs: tuple[Any, ...]
) -> Reference:
    """One batch through the float network."""
    quick = dict.fromkeys(plan.at, Computed())
    means = {op: _Mean(add) for op, add in find_bias_adds(plan.flow).items()}
    return Reference(*program.run(params, inputs, {**quick, **means}))


def corrected_run(
    program: Program,
    plan: Plan,
    params: PyTree,
    inputs: tuple[Any, ...],
    config: QuantConfig,
    feed: Mapping[str, Any],
) -> Corrected:
    """One batch through the quantized network, every bias corrected on the spot.

    The feed holds the ranges of activations and the means of the float network.
    """
    fixes = {op: _Fix(add) for op, add in find_bias_adds(plan.flow).items()}
    return Corrected(*run_quantized(program, plan, params, inputs, config, feed, fixes))


def _shifts(
    fn: Callable[..., Any],
    config: QuantConfig,
    params: PyTree,
    reference: PyTree,
    ranges: Mapping[str, Any],
    inputs: tuple[Any, ...],
) -> dict[str, Any]:
    """By how much each bias must move on one batch, all earlier ones moved already."""
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    means = reference_run(program, plan, reference, inputs).means
    return corrected_run(program, plan, params, inputs, config, {**ranges, **means}).shifts


def _totals(samples: Iterable[tuple[Mapping[str, Any], PyTree]]) -> dict[str, np.ndarray]:
    """Per place the sum of its shifts and of their weights: how much data a batch holds.

    A branch that was not taken has NaN and no weight.
    """
    totals: dict[str, Any] = {}
    for shifts, inputs in samples:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(inputs))
        for name, shift in shifts.items():
            weight = size * ~np.isnan(shift)
            weighted = np.stack([weight * np.nan_to_num(np.asarray(shift, np.float64)), weight])
            totals[name] = totals.get(name, 0) + weighted
    return totals


def _shifted(params: PyTree, adds: Sequence[BiasAdd], totals: Mapping[str, np.ndarray]) -> PyTree:
    """Biases plus the mean shift over all the data and places where each is added."""
    leaves = named_leaves(params)
    by_leaf: dict[str, Any] = {}
    for add in adds:
        shared = tuple(1 + k for k, axis in enumerate(add.loops) if axis is None)
        kept = [axis for axis in add.loops if axis is not None] + list(add.leaf_axes)
        order = (0, *(1 + k for k in np.argsort(kept)))
        total = totals[add.name].sum(shared).transpose(order)
        by_leaf[add.leaf] = by_leaf.get(add.leaf, 0) + total
    new = {}
    for path, (total, weight) in by_leaf.items():
        shift = (total / np.where(weight, weight, 1)).reshape(jnp.shape(leaves[path]))
        wide = wide_dtype(leaves[path].dtype)
        new[path] = leaves[path].astype(wide) + shift.astype(wide)
    return replace_leaves(params, new)


class _Mean:
    """Action: the mean of the sum over everything but the bias's axes, in the leaf's order."""

    feeds: tuple[str, ...] = ()

    def __init__(self, add: BiasAdd) -> None:
        self.add = add

    def mean(self, out: jax.Array) -> jax.Array:
        return self.add.per_channel(jnp.mean, out.astype(wide_dtype(out.dtype)))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        (out,) = op.bind(*operands)
        return [out], {self.add.name: self.mean(out)}


class _Fix(_Mean):
    """Action: shift the sum so that its mean is the float network's; report the shift.

    Where rounding sends the data into another branch, no mean is known, and nothing is shifted.
    """

    def __init__(self, add: BiasAdd) -> None:
        super().__init__(add)
        self.feeds = (add.name,)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        (out,) = op.bind(*operands)
        shift = feed[self.add.name] - self.mean(out)
        aligned = self.add.spread(jnp.where(jnp.isnan(shift), 0, shift), out.shape)
        return [out + aligned.astype(out.dtype)], {self.add.name: shift}
