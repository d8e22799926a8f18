"""The stages of the recipe, and the way through them.

The invariant: the best candidate that was measured is served, whatever came after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.apply import apply_scales, equalize
from flaxcle.bias.empirical import corrected
from flaxcle.cache import compiled
from flaxcle.clips import expose_clips
from flaxcle.discover import find_spec
from flaxcle.errors import FlaxcleError
from flaxcle.fold import fold_batch_norm
from flaxcle.learn import learn_ranges, learn_scales
from flaxcle.paths import PyTree, float_leaves, squared_error
from flaxcle.prune import prune_dead_channels
from flaxcle.quantize import Calibration, QuantConfig, calibrate, fake_quant
from flaxcle.rounding import round_weights
from flaxcle.tables import Table

COLUMNS = ("stage", "kept", "SQNR dB", "corrected dB", "seconds", "remark")

Function = Callable[..., Any]
Data = Sequence[tuple[Any, ...]]
Stage = Callable[["_Candidate"], "_Candidate"]


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
class _Candidate:
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

    def moved(self, params: PyTree) -> _Candidate:
        """The same function with other scales."""
        return _Candidate(self.fn, params, params, self.prepared)


@dataclass
class Kitchen:
    """The data, the float outputs to reach, the rows so far and the best candidate."""

    fn: Function
    variables: PyTree
    data: Data
    config: QuantConfig
    margin: float
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    best: _Candidate | None = None

    def __post_init__(self) -> None:
        count = max(len(self.data) // 4, 1)
        self.held = self.data[-count:]
        self.seen = self.data[:-count] or self.held
        run = jax.jit(self.fn)
        self.wanted = [float_leaves(run(self.variables, *inputs)) for inputs in self.held]
        self.signal = sum(float(jnp.sum(jnp.square(out))) for outs in self.wanted for out in outs)

    def cook(self, rounding: bool) -> Recipe:
        """All stages in turn."""
        start = _network(self.fn, self.variables)
        line = self.measured(start, "as it is", time.monotonic())
        line = self.enabled("fold BatchNorm", self.fold, line)
        line = self.expected("expose clips", self.expose, line)
        line = self.enabled("prune dead channels", self.prune, line)
        line = self.tried("equalize", self.equalize, line)
        line = self.tried("learn scales", self.learn, line)
        if rounding:
            for observer in ("minmax", "mse"):
                stage = partial(self.round, observer)
                line = self.tried(f"round weights ({observer})", stage, line)
        # Distilled data have no outliers that clipping could harm: they can't judge it.
        observers = ("percentile", "mse") if self.config.act_bits and self.margin == 1 else ()
        for observer in observers:
            if observer != self.config.act_observer:
                stage = partial(self.calibrate, observer)
                line = self.tried(f"ranges ({observer})", stage, line)
        if observers and (self.config.act_bits or 8) < 8:
            self.tried("learn ranges", self.learn_ranges, line)
        return self.served()

    def served(self) -> Recipe:
        """The best candidate, and the rows of the stages that led to it."""
        best = self.best
        assert best is not None
        assert best.calibration is not None
        corrects = best.noise_corrected < best.noise
        rows = [(row[0], row[0] in best.stages, *row[1:]) for row in self.rows]
        plain, corrected = self.decibel(best.noise), self.decibel(best.noise_corrected)
        rows.append(("correct biases", corrects, plain, corrected, 0.0, ""))
        params = best.corrected if corrects else best.params
        stages = Table(COLUMNS, tuple(rows))
        return Recipe(
            best.fn, params, best.calibration, stages, self.config, best.prepared, best.floats
        )

    def enabled(self, name: str, stage: Stage, line: _Candidate) -> _Candidate:
        """The network behind a stage that others need; the one before where it does not apply."""
        new = self.stepped(name, stage, line)
        return new if np.isfinite(new.least) else line

    def expected(self, name: str, stage: Stage, line: _Candidate) -> _Candidate:
        """The network behind a stage that changes no number, with the noise that it had."""
        start = time.monotonic()
        new = self.applied(name, stage, line, start)
        if new is line:
            return line
        self.rows.append((name, *self.numbers(line, start), ""))
        stages = (*line.stages, name)
        return replace(new, stages=stages, noise=line.noise, noise_corrected=line.noise_corrected)

    def tried(self, name: str, stage: Stage, line: _Candidate) -> _Candidate:
        """The better of a network with and without a stage."""
        new = self.stepped(name, stage, line)
        return new if new.least < line.least else line

    def stepped(self, name: str, stage: Stage, line: _Candidate) -> _Candidate:
        """The network behind a stage, measured; the one before where the stage does not apply."""
        start = time.monotonic()
        new = self.applied(name, stage, line, start)
        return new if new is line else self.measured(replace(new, stages=line.stages), name, start)

    def applied(self, name: str, stage: Stage, line: _Candidate, start: float) -> _Candidate:
        """The network behind a stage; the one before, with a remark, where it does not apply."""
        try:
            return stage(line)
        except FlaxcleError as error:
            self.rows.append((name, *self.numbers(line, start), str(error).splitlines()[0]))
            return line

    def measured(self, one: _Candidate, name: str, start: float) -> _Candidate:
        """The candidate with its noise, as a row and perhaps the best so far."""
        new = self.judged(one, name)
        if self.best is None or new.least < self.best.least:
            self.best = new
        self.rows.append((name, *self.numbers(new, start), ""))
        return new

    def judged(self, one: _Candidate, name: str) -> _Candidate:
        """The candidate with its noise on the batches that were held back."""
        ranges = one.calibration or self.ranges(one)
        fixed = corrected(one.fn, one.params, one.floats, self.seen, self.config, ranges)
        run = compiled(_quantized, one.fn, self.config)
        return replace(
            one,
            stages=(*(s for s in one.stages if _kind(s) != _kind(name)), name),
            calibration=ranges,
            noise=self.noise(run, one.params, ranges),
            corrected=fixed,
            noise_corrected=self.noise(run, fixed, ranges),
        )

    def ranges(self, one: _Candidate) -> Calibration:
        """The ranges on the batches that are seen, with the margin of distilled ones."""
        found = calibrate(one.fn, one.floats, self.seen, self.config)
        low, high = (
            {k: x * self.margin for k, x in end.items()} for end in (found.low, found.high)
        )
        return replace(found, low=low, high=high)

    def numbers(self, one: _Candidate, start: float) -> tuple[float, float, float]:
        """Of a row: the SQNR, the same with corrected biases, and the seconds."""
        seconds = round(time.monotonic() - start, 1)
        return self.decibel(one.noise), self.decibel(one.noise_corrected), seconds

    def decibel(self, noise: float) -> float:
        """The SQNR."""
        with np.errstate(divide="ignore"):
            return round(float(10 * np.log10(np.divide(self.signal, noise))), 2)

    def noise(self, run: Function, params: PyTree, ranges: Calibration) -> float:
        """The squared error of the quantized outputs; infinite where they are not finite."""
        total = 0.0
        for inputs, wanted in zip(self.held, self.wanted, strict=True):
            total += float(squared_error(run(params, ranges, inputs), wanted))
        return total if np.isfinite(total) else float("inf")

    def fold(self, one: _Candidate) -> _Candidate:
        """BatchNorm into the kernels."""
        return _network(one.fn, fold_batch_norm(one.fn, one.params, *self.seen[0]))

    def expose(self, one: _Candidate) -> _Candidate:
        """A bound for each channel of a clip."""
        return _network(*expose_clips(one.fn, one.params, *self.seen[0]))

    def prune(self, one: _Candidate) -> _Candidate:
        """Dead channels zeroed."""
        return _network(one.fn, prune_dead_channels(one.fn, one.params, *self.seen[0]))

    def equalize(self, one: _Candidate) -> _Candidate:
        """Weight ranges balanced, in every group."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        return one.moved(equalize(one.params, spec.select()))

    def learn(self, one: _Candidate) -> _Candidate:
        """Scales by predicted noise."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        scales = learn_scales(one.fn, one.params, spec, self.seen, self.config)
        return one.moved(apply_scales(one.params, scales, spec))

    def learn_ranges(self, one: _Candidate) -> _Candidate:
        """Ranges of activations by the error of the output."""
        assert one.calibration is not None
        arguments = (one.fn, one.params, self.seen, self.config, one.calibration)
        return replace(one, calibration=learn_ranges(*arguments, reference=one.floats))

    def round(self, observer: Any, one: _Candidate) -> _Candidate:
        """Weights up or down by their inputs, on the grid of an observer, which minmax finds."""
        config = replace(self.config, weight_observer=observer)
        return replace(one, params=round_weights(one.fn, one.floats, self.seen, config))

    def calibrate(self, observer: Any, one: _Candidate) -> _Candidate:
        """Ranges of activations by another observer."""
        config = replace(self.config, act_observer=observer)
        return replace(one, calibration=calibrate(one.fn, one.floats, self.seen, config))


def _network(fn: Function, params: PyTree) -> _Candidate:
    """A network whose scales have not moved."""
    return _Candidate(fn, params, params, params)


def _kind(stage: str) -> str:
    """Of alternatives, such as two ways of rounding, the last that was kept counts."""
    return stage.partition(" (")[0]


def _quantized(
    fn: Function, config: QuantConfig, params: PyTree, ranges: Calibration, inputs: tuple[Any, ...]
) -> Any:
    return fake_quant(fn, config, ranges)(params, *inputs)
