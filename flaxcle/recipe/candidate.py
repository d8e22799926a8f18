"""A network on its way through the recipe, and what comes of the best one.

The invariant: `floats` and `prepared` compute the function of the network that was passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flaxcle.paths import PyTree
from flaxcle.quantize import Calibration, QuantConfig
from flaxcle.tables import Table

Function = Callable[..., Any]


@dataclass(frozen=True)
class Recipe:
    """What `quantize_recipe` made.

    Attributes:
        fn: the function, with a bound for each channel where clips were exposed.
        params: its params, in float; `fake_quant(fn, config, calibration)` rounds them.
        calibration: the ranges of its activations.
        stages: one row for each stage: whether it was kept, the SQNR of the quantized output with
            it on held-back calibration data, the same with corrected biases, the seconds that it
            took, and a remark where it does not apply.
        config: the arithmetic.
        prepared: its params from before scales moved: folded, pruned, with bounds for its clips.
        floats: its params from before weights were rounded and biases corrected.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn, x = lambda p, x: x @ p["w"] + p["b"], jnp.ones((4, 2))
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros((1, 3))}
        >>> recipe = fc.quantize_recipe(fn, params, [x], fc.QuantConfig())
        >>> int8 = fc.fake_quant(recipe.fn, recipe.config, recipe.calibration)
        >>> int8(recipe.params, x).shape
        (4, 3)
    """

    fn: Function
    params: PyTree
    calibration: Calibration
    stages: Table
    config: QuantConfig
    prepared: PyTree
    floats: PyTree

    def __rich__(self) -> Table:
        """What `rich.print` shows."""
        return self.stages

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.stages.to_html()


@dataclass(frozen=True)
class Candidate:
    """A network on its way, plain and with corrected biases; `floats` are from before rounding."""

    fn: Function
    params: PyTree
    floats: PyTree
    prepared: PyTree
    stages: tuple[str, ...] = ()
    calibration: Calibration | None = None
    noise: float = float("inf")
    corrected: PyTree = None
    noise_corrected: float = float("inf")

    @property
    def least(self) -> float:
        """The noise of the better of both."""
        return min(self.noise, self.noise_corrected)

    def moved(self, params: PyTree) -> Candidate:
        """The same function with other scales."""
        return Candidate(self.fn, params, params, self.prepared)


def unscaled(fn: Function, params: PyTree) -> Candidate:
    """A network whose scales have not moved."""
    return Candidate(fn, params, params, params)


def least(one: Candidate) -> float:
    """Its noise, to choose by."""
    return one.least
