"""The ranges that the quantizers read, place by place: what a calibration is good for.

The float network runs with a look at every operand that `fake_quant` would round. The invariant:
scales and zero points are those of `fake_quant` with the same config and calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxcle.analysis.grids import Histogram, State, cells_of, histogram_of, joined
from flaxcle.analysis.look import activation_states, places, weight_states
from flaxcle.cache import compiled
from flaxcle.paths import PyTree
from flaxcle.quantize import Calibration, QuantConfig
from flaxcle.quantize.calibrate import Batches, listed
from flaxcle.quantize.fake import ranges_of
from flaxcle.quantize.plan import Plan
from flaxcle.tables import Table

_GRID = ("scale", "zero point", "under half a step %", "clipped %", "SQNR dB")
WEIGHT_COLUMNS = ("layer", "name", "leaf", "channels", "min", "max", "max/median", *_GRID)
ACT_COLUMNS = ("layer", "name", "min", "max", *_GRID)
BOX_COLUMNS = ("layer", "name", "min", "lower quartile", "median", "upper quartile", "max")

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

States = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class RangeStatistics:
    """What `range_statistics` found.

    A name is that of a quantizer, with the turn in brackets inside `scan`:
    `'blocks/Dense_0/weight[3]'`.

    Attributes:
        weights: one row for each weight: its layer, name and leaf (`None` for one that is computed
            from others), the number of output channels, its extremes, the ratio of the largest
            channel to the median one (a channel's range is its largest magnitude), then the grid:
            the scale (the largest of several), the zero point (`None` for several), the percents
            that vanish under half a step or are clipped, and the SQNR of the tensor itself.
        activations: the same for each activation; min and max are the calibrated range.
        channels: name of a weight -> array of shape (channels, 5): the smallest value, lower
            quartile, median, upper quartile and largest value of each output channel.
        histograms: name -> `Histogram`, of weights and activations.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params = {"kernel": jnp.array([[8.0, 0.01], [4.0, 0.02]])}
        >>> found = fc.range_statistics(fn, params, [jnp.eye(2)], fc.QuantConfig())
        >>> found.weights.column("under half a step %"), found.weights.column("channels")
        ([50.0], [2])
        >>> found.histograms["input_0"].counts.sum().item()
        4
    """

    weights: Table
    activations: Table
    channels: dict[str, np.ndarray]
    histograms: dict[str, Histogram]

    def boxes(self) -> Table:
        """For each weight five numbers of its channels' ranges, those of zeros left out."""
        layers = zip(self.weights.column("layer"), self.weights.column("name"), strict=True)
        rows = []
        for layer, name in layers:
            five = np.quantile(_alive(self.channels[name]), QUARTILES)
            rows.append((layer, name, *map(float, five)))
        return Table(BOX_COLUMNS, tuple(rows))


def range_statistics(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Batches,
    config: QuantConfig,
    calibration: Calibration | None = None,
) -> RangeStatistics:
    """Every weight and activation against its grid: ranges, scales, what vanishes or is clipped.

    Weights are looked at as the operation sees them, channel by channel; activations over all
    batches, on the grid that the calibration gives them. What `config` leaves in float has no
    row, nor has a branch that no batch took.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params.
        batches: an iterable of inputs, or of tuples of inputs.
        config: the arithmetic.
        calibration: the ranges of the activations; from the same batches when not given.

    Returns:
        Tables of weights and activations, and the numbers behind box plots and histograms.

    Raises:
        CalibrationError: no batch, or the calibration belongs to another function.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jnp.maximum(x @ p["a"], 0)
        >>> found = fc.range_statistics(
        ...     fn, {"a": jnp.array([[1.0, -3.0]])}, [jnp.ones((4, 1))], fc.QuantConfig()
        ... )
        >>> found.activations.column("name"), found.activations.column("max")
        (['input_0', 'output_0'], [1.0, 1.0])

    Source: Nagel et al. 2019, arXiv:1906.04721, figure 2 (channel ranges).
    """
    data = listed(batches, "range statistics need at least one batch")
    plan, calibration = places(fn, params, data, config, calibration)
    ranges = ranges_of(calibration)
    states: States = {}
    if config.weight_bits is not None:
        found = compiled(weight_states, fn, config)(params, ranges, data[0])
        states = {name: _summarized(state) for name, state in found.items()}
    for inputs in data if config.act_bits is not None else ():
        found = compiled(activation_states, fn, config)(params, ranges, inputs)
        states |= {name: joined(states.get(name, {}), state) for name, state in found.items()}
    return _gathered(plan, states, calibration)


def _summarized(state: State) -> dict[str, np.ndarray]:
    """The state of a weight with five numbers of each channel in the place of its entries."""
    five = np.quantile(np.asarray(state.pop("rows")), QUARTILES, axis=-1)
    return joined({}, {**state, "five": np.moveaxis(five, 0, -1)})


def _gathered(plan: Plan, states: States, calibration: Calibration) -> RangeStatistics:
    leaves = {plan.at[op][k].name: fact.leaf for op, k, fact in plan.weights()}
    weights, activations, channels, histograms = [], [], {}, {}
    for quantizer in plan.quantizers().values():
        low, high = (end.get(quantizer.name) for end in (calibration.low, calibration.high))
        for turn, label, state in _turns(states.get(quantizer.name, {})):
            name = quantizer.name + label
            histograms[name] = histogram_of(state)
            row = (quantizer.layer, name)
            if quantizer.weight:
                five = channels[name] = state["five"]
                row = (*row, leaves.get(quantizer.name), len(five), *_spread(five))
                weights.append((*row, *cells_of(state)))
            else:
                row = (*row, *(float(np.asarray(end)[turn]) for end in (low, high)))
                activations.append((*row, *cells_of(state)))
    tables = Table(WEIGHT_COLUMNS, tuple(weights)), Table(ACT_COLUMNS, tuple(activations))
    return RangeStatistics(*tables, channels, histograms)


def _turns(state: Mapping[str, np.ndarray]) -> Iterator[tuple[Any, str, dict[str, np.ndarray]]]:
    """The state at each turn of the loops around a quantizer, with its index as a label."""
    shape = state["scale"].shape if state else (0,)
    for turn in filter(lambda turn: np.isfinite(state["scale"][turn]), np.ndindex(shape)):
        label = f"[{','.join(map(str, turn))}]" if turn else ""
        yield turn, label, {key: value[turn] for key, value in state.items()}


def _alive(five: np.ndarray) -> np.ndarray:
    """The largest magnitude of each channel that is not zero; of all when all are."""
    peaks = np.maximum(-five[:, 0], five[:, -1])
    return peaks[peaks > 0] if np.any(peaks > 0) else peaks


def _spread(five: np.ndarray) -> tuple[float, float, float | None]:
    """The extremes, and the largest channel over the median one of those that are not zero."""
    peaks = _alive(five)
    ratio = float(peaks.max() / np.median(peaks)) if peaks.any() else None
    return float(five[:, 0].min()), float(five[:, -1].max()), ratio
