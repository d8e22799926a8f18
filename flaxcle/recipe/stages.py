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
from flaxcle.recipe.candidate import Candidate, Function, Recipe, least, unscaled
from flaxcle.rounding import round_weights
from flaxcle.tables import Table

COLUMNS = ("stage", "kept", "SQNR dB", "corrected dB", "seconds", "remark")

Data = Sequence[tuple[Any, ...]]
Stage = Callable[[Candidate], Candidate]


@dataclass
class Kitchen:
    """The data, the float outputs to reach, the rows so far and the best candidate."""

    fn: Function
    variables: PyTree
    data: Data
    config: QuantConfig
    margin: float
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    best: Candidate | None = None

    def __post_init__(self) -> None:
        count = max(len(self.data) // 4, 1)
        self.held = self.data[-count:]
        self.seen = self.data[:-count] or self.held
        run = jax.jit(self.fn)
        self.wanted = [float_leaves(run(self.variables, *inputs)) for inputs in self.held]
        self.signal = sum(float(jnp.sum(jnp.square(out))) for outs in self.wanted for out in outs)

    def cook(self, rounding: bool) -> Recipe:
        """All stages in turn."""
        start = unscaled(self.fn, self.variables)
        line = self.measured(start, "as it is", time.monotonic())
        line = self.enabled("fold BatchNorm", self.fold, line)
        line = self.expected("expose clips", self.expose, line)
        line = self.enabled("prune dead channels", self.prune, line)
        line = self.tried("equalize", self.equalize, line)
        learned = self.stepped("learn scales", self.learn, line)
        line = self.rounded(line, learned) if rounding else min(line, learned, key=least)
        # Distilled data have no outliers that clipping could harm: they can't judge it.
        observers = ("percentile", "mse") if self.config.act_bits and self.margin == 1 else ()
        for observer in observers:
            if observer != self.config.act_observer:
                stage = partial(self.calibrate, observer)
                line = self.tried(f"ranges ({observer})", stage, line)
        if observers and (self.config.act_bits or 8) < 8:
            self.tried("learn ranges", self.learn_ranges, line)
        return self.served()

    def rounded(self, line: Candidate, learned: Candidate) -> Candidate:
        """The best way to round the weights, at the scales with and without learning.

        Learned scales that lose may win once weights are rounded: at 4 bits nothing works before.
        """
        minmax, mse = (partial(self.round, observer) for observer in ("minmax", "mse"))
        best = self.tried("round weights (minmax)", minmax, min(line, learned, key=least))
        if learned.least > line.least:
            other = self.stepped("round weights (learned scales)", minmax, learned)
            best = min(best, other, key=least)
        return self.tried("round weights (mse)", mse, best)

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

    def enabled(self, name: str, stage: Stage, line: Candidate) -> Candidate:
        """The network behind a stage that others need; the one before where it does not apply."""
        new = self.stepped(name, stage, line)
        return new if np.isfinite(new.least) else line

    def expected(self, name: str, stage: Stage, line: Candidate) -> Candidate:
        """The network behind a stage that changes no number, with the noise that it had."""
        start = time.monotonic()
        new = self.applied(name, stage, line, start)
        if new is line:
            return line
        self.rows.append((name, *self.numbers(line, start), ""))
        stages = (*line.stages, name)
        return replace(new, stages=stages, noise=line.noise, noise_corrected=line.noise_corrected)

    def tried(self, name: str, stage: Stage, line: Candidate) -> Candidate:
        """The better of a network with and without a stage."""
        new = self.stepped(name, stage, line)
        return min(line, new, key=least)

    def stepped(self, name: str, stage: Stage, line: Candidate) -> Candidate:
        """The network behind a stage, measured; the one before where the stage does not apply."""
        start = time.monotonic()
        new = self.applied(name, stage, line, start)
        return new if new is line else self.measured(replace(new, stages=line.stages), name, start)

    def applied(self, name: str, stage: Stage, line: Candidate, start: float) -> Candidate:
        """The network behind a stage; the one before, with a remark, where it does not apply."""
        try:
            return stage(line)
        except FlaxcleError as error:
            self.rows.append((name, *self.numbers(line, start), str(error).splitlines()[0]))
            return line

    def measured(self, one: Candidate, name: str, start: float) -> Candidate:
        """The candidate with its noise, as a row and perhaps the best so far."""
        new = self.judged(one, name)
        if self.best is None or new.least < self.best.least:
            self.best = new
        self.rows.append((name, *self.numbers(new, start), ""))
        return new

    def judged(self, one: Candidate, name: str) -> Candidate:
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

    def ranges(self, one: Candidate) -> Calibration:
        """The ranges on the batches that are seen, with the margin of distilled ones."""
        found = calibrate(one.fn, one.floats, self.seen, self.config)
        low, high = (
            {k: x * self.margin for k, x in end.items()} for end in (found.low, found.high)
        )
        return replace(found, low=low, high=high)

    def numbers(self, one: Candidate, start: float) -> tuple[float, float, float]:
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

    def fold(self, one: Candidate) -> Candidate:
        """BatchNorm into the kernels."""
        return unscaled(one.fn, fold_batch_norm(one.fn, one.params, *self.seen[0]))

    def expose(self, one: Candidate) -> Candidate:
        """A bound for each channel of a clip."""
        return unscaled(*expose_clips(one.fn, one.params, *self.seen[0]))

    def prune(self, one: Candidate) -> Candidate:
        """Dead channels zeroed."""
        return unscaled(one.fn, prune_dead_channels(one.fn, one.params, *self.seen[0]))

    def equalize(self, one: Candidate) -> Candidate:
        """Weight ranges balanced, in every group."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        return one.moved(equalize(one.params, spec.select()))

    def learn(self, one: Candidate) -> Candidate:
        """Scales by predicted noise."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        scales = learn_scales(one.fn, one.params, spec, self.seen, self.config)
        return one.moved(apply_scales(one.params, scales, spec))

    def learn_ranges(self, one: Candidate) -> Candidate:
        """Ranges of activations by the error of the output."""
        assert one.calibration is not None
        arguments = (one.fn, one.params, self.seen, self.config, one.calibration)
        return replace(one, calibration=learn_ranges(*arguments, reference=one.floats))

    def round(self, observer: Any, one: Candidate) -> Candidate:
        """Weights up or down by their inputs, on the grid of an observer, which minmax finds."""
        config = replace(self.config, weight_observer=observer)
        return replace(one, params=round_weights(one.fn, one.floats, self.seen, config))

    def calibrate(self, observer: Any, one: Candidate) -> Candidate:
        """Ranges of activations by another observer."""
        config = replace(self.config, act_observer=observer)
        return replace(one, calibration=calibrate(one.fn, one.floats, self.seen, config))


def _kind(stage: str) -> str:
    """Of alternatives, such as two ways of rounding, the last that was kept counts."""
    return stage.partition(" (")[0]


def _quantized(
    fn: Function, config: QuantConfig, params: PyTree, ranges: Calibration, inputs: tuple[Any, ...]
) -> Any:
    return fake_quant(fn, config, ranges)(params, *inputs)
