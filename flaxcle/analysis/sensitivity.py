"""Which layers the noise of the output comes from: quantizers switched on one at a time.

    alone    only this one rounds        SQNR of the output: the noise that it makes
    without  all but this one round      against all of them: what leaving it in float would win

A mask, one flag for each quantizer, is an argument of the compiled program, so that one program
serves all layers. The invariant: all flags on is `fake_quant`, all flags off the float function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.analysis.look import places
from flaxcle.cache import compiled
from flaxcle.compare import decibel
from flaxcle.errors import ConfigError
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree, float_leaves, squared_error
from flaxcle.quantize import Calibration, QuantConfig
from flaxcle.quantize.calibrate import Batches, listed
from flaxcle.quantize.fake import ranges_of, run_quantized
from flaxcle.quantize.plan import Plan, make_plan
from flaxcle.tables import Table

COLUMNS = ("layer", "kind", "alone dB", "without dB", "gain dB")
ALL = "(all)"
BOTH, WEIGHTS, ACTIVATIONS = "both", "weights", "activations"

Place = tuple[str, str]
Masks = dict[Place, np.ndarray]


def sensitivity(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Batches,
    config: QuantConfig,
    calibration: Calibration | None = None,
) -> Table:
    """Ranks layers by the noise that their rounding makes at the output, the worst first.

    The weights of a layer and the activations that it reads are switched apart. Each place costs
    two evaluations of the network on all batches, by one compiled program.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params.
        batches: an iterable of inputs, or of tuples of inputs; a few dozen examples rank well.
        config: the arithmetic.
        calibration: the ranges of the activations; from the same batches when not given.

    Returns:
        One row for each layer and kind (`'weights'`, `'activations'`): `alone dB`, the SQNR of
        the output when only this is rounded; `without dB`, when all but this is; `gain dB`, what
        the network wins when this stays in float. In front stand the rows of the layer `'(all)'`,
        which tell whether weights or activations limit.

    Raises:
        CalibrationError: no batch, or the calibration belongs to another function.
        ConfigError: weights and activations both stay in float.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["a"] @ p["b"]
        >>> params = {"a": jnp.array([[100.0, 1.0]]), "b": jnp.array([[0.0], [1.0]])}
        >>> x = jnp.linspace(0.1, 1, 64)[:, None]
        >>> table = fc.sensitivity(fn, params, [x], fc.QuantConfig(act_bits=None))
        >>> table.column("layer"), table.column("kind")[1:]
        (['(all)', '(all)', 'a', 'b'], ['weights', 'weights', 'weights'])

    Source: Nagel et al. 2021, arXiv:2106.08295, section 3 (the debugging flow chart).
    """
    data = _checked(batches, config)
    plan, calibration = places(fn, params, data, config, calibration)
    masks = _masks(plan, config)
    every = _totals(masks)
    both = every[ALL, BOTH]
    run = _Runner(fn, params, data, config, ranges_of(calibration))
    whole = run.sqnr(both)

    def row(place: Place, mask: np.ndarray) -> tuple[Any, ...]:
        without = run.sqnr(both & ~mask)
        gain = without - whole if np.isfinite(whole) else 0.0  # nothing to gain without noise
        return (*place, run.sqnr(mask), without, gain)

    rows = sorted((row(*item) for item in masks.items()), key=lambda row: row[2])
    return Table(COLUMNS, (*(row(*item) for item in every.items()), *rows))


class _Runner:
    """Measures masks: the float outputs are kept, the network runs once for each mask."""

    def __init__(
        self,
        fn: Callable[..., Any],
        params: PyTree,
        data: Sequence[tuple[Any, ...]],
        config: QuantConfig,
        ranges: Mapping[str, Any],
    ) -> None:
        self.run = compiled(run_masked, fn, config)
        self.params, self.data, self.ranges = params, data, ranges
        self.wanted: list[list[jax.Array]] = []

    def sqnr(self, mask: np.ndarray) -> float:
        """The SQNR of the outputs when the flagged quantizers round."""
        if not self.wanted:
            self.wanted = list(self.outputs(np.zeros_like(mask)))
        pairs = zip(self.outputs(mask), self.wanted, strict=True)
        sums = np.sum([_squares(found, wanted) for found, wanted in pairs], axis=0, dtype=float)
        return decibel(sums[0], sums[1])

    def outputs(self, mask: np.ndarray) -> Any:
        """The outputs of each batch."""
        return (self.run(self.params, self.ranges, mask, inputs) for inputs in self.data)


def run_masked(
    fn: Callable[..., Any],
    config: QuantConfig,
    params: PyTree,
    ranges: Mapping[str, Any],
    mask: jax.Array,
    inputs: tuple[Any, ...],
) -> list[jax.Array]:
    """The float outputs when those quantizers round whose flag in the mask is on.

    The mask has one flag for each of `Plan.quantizers()`, in that order.
    """
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    flags = {f"{name}:on": mask[k] for k, name in enumerate(plan.quantizers())}
    outputs = run_quantized(program, plan, params, inputs, config, {**ranges, **flags}).outputs
    return float_leaves(outputs)


@jax.jit
def _squares(found: list[jax.Array], wanted: list[jax.Array]) -> tuple[Any, Any]:
    """The sums of squares of signal and noise."""
    zeros = jax.tree.map(jnp.zeros_like, wanted)
    return squared_error(zeros, wanted), squared_error(found, wanted)


def _checked(batches: Batches, config: QuantConfig) -> list[tuple[Any, ...]]:
    if config.weight_bits is None and config.act_bits is None:
        raise ConfigError(
            "there is nothing to quantize",
            where="weight_bits and act_bits are both None",
            then="give one of them a number of bits",
        )
    return listed(batches, "sensitivity needs at least one batch")


def _masks(plan: Plan, config: QuantConfig) -> Masks:
    """The mask of each layer and kind that the config rounds, in the order of the network."""
    masks: Masks = {}
    quantizers = plan.quantizers().values()
    for k, quantizer in enumerate(quantizers):
        kind = WEIGHTS if quantizer.weight else ACTIVATIONS
        if (config.weight_bits if quantizer.weight else config.act_bits) is not None:
            mask = masks.setdefault((quantizer.layer, kind), np.zeros(len(quantizers), bool))
            mask[k] = True
    return masks


def _totals(masks: Masks) -> Masks:
    """The masks of everything, and of each kind."""
    kinds = dict.fromkeys(kind for _, kind in masks)
    apart = {
        (ALL, kind): np.any([mask for (_, k), mask in masks.items() if k == kind], axis=0)
        for kind in kinds
    }
    return {(ALL, BOTH): np.any(list(masks.values()), axis=0), **apart}
