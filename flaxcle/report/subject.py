"""What a report is about: two networks, the data to look at them with, and what is known already.

The invariant: every network here is in float, and is rounded only when it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flaxcle.bias import correct_bias
from flaxcle.errors import FlaxcleError
from flaxcle.paths import PyTree
from flaxcle.quantize import Calibration, QuantConfig, calibrate
from flaxcle.quantize.calibrate import Batches, listed
from flaxcle.recipe import Recipe
from flaxcle.tables import Table

Function = Callable[..., Any]
Data = Sequence[tuple[Any, ...]]

NEED = "a report needs at least one batch"


@dataclass(frozen=True)
class Network:
    """A float function with its params, the ranges of its activations, and its arithmetic."""

    fn: Function
    params: PyTree
    calibration: Calibration
    config: QuantConfig


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    Attributes:
        original: what the user had; its function must not change.
        before: the network to compare with, folded where the recipe folded it.
        after: the equalized network, before weights were rounded and biases corrected.
        final: the same with corrected biases (and rounded weights), where there is such a one.
        data: all inputs.
        probes: the few of them on which layers are looked at one by one.
        stages: of the recipe.
    """

    original: tuple[Function, PyTree]
    before: Network
    after: Network
    final: Network | None
    data: Data
    probes: Data
    stages: Table | None = None


def make_subject(
    networks: tuple[Function, PyTree, PyTree | Recipe],
    after_fn: Function | None,
    corrected: PyTree | None,
    batches: Batches,
    probes: Batches | None,
    config: QuantConfig | None,
) -> Subject:
    """The subject of a report; ranges and corrected biases that are missing are measured.

    Raises:
        CalibrationError: no batch.
    """
    fn, before, after = networks
    data = listed(batches, NEED)
    few = data[:1] if probes is None else listed(probes, NEED)
    if isinstance(after, Recipe):
        return _of_recipe(fn, before, after, data, few)
    config = config or QuantConfig()
    first = Network(fn, before, calibrate(fn, before, data, config), config)
    fn = after_fn or fn
    second = Network(fn, after, calibrate(fn, after, data, config), config)
    if corrected is None:
        corrected = _corrected(second, data)
    final = None if corrected is None else Network(fn, corrected, second.calibration, config)
    return Subject((first.fn, before), first, second, final, data, few)


def _of_recipe(fn: Function, variables: PyTree, recipe: Recipe, data: Data, few: Data) -> Subject:
    config, ranges = recipe.config, recipe.calibration
    known = calibrate(recipe.fn, recipe.prepared, data, config)
    before = Network(recipe.fn, recipe.prepared, known, config)
    after = Network(recipe.fn, recipe.floats, ranges, config)
    final = Network(recipe.fn, recipe.params, ranges, config)
    return Subject((fn, variables), before, after, final, data, few, recipe.stages)


def _corrected(network: Network, data: Data) -> PyTree | None:
    """With corrected biases; without, where that is not possible."""
    try:
        return correct_bias(network.fn, network.params, data, network.config)
    except FlaxcleError:
        return None
