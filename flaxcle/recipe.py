"""`quantize_recipe`: everything that helps a network survive its grid, and nothing that does not.

    fold -> expose clips -> prune -> equalize -> learn -> (round) -> correct biases

Every stage is a candidate: it is kept when the quantized output, with or without corrected biases,
is nearer to the float output on calibration data that the stage has not seen. Stages that keep the
function, and that later ones need, are kept unless they do harm. The invariant: the result is never
further from float, on those data, than the network that was passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.apply import apply_scales, equalize
from flaxcle.bias import correct_bias
from flaxcle.clips import expose_clips
from flaxcle.discover import find_spec
from flaxcle.errors import CalibrationError, FlaxcleError
from flaxcle.fold import fold_batch_norm
from flaxcle.learn import learn_scales
from flaxcle.paths import PyTree, float_leaves
from flaxcle.prune import prune_dead_channels
from flaxcle.quantize import Calibration, QuantConfig, calibrate, fake_quant
from flaxcle.quantize.calibrate import Batches, as_inputs
from flaxcle.rounding import round_weights
from flaxcle.tables import Table

HARMLESS = 1.02  # a stage that later ones need may cost this factor of noise
COLUMNS = ("stage", "kept", "SQNR dB", "corrected dB", "seconds", "remark")

Function = Callable[..., Any]
Data = Sequence[tuple[Any, ...]]


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

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn, x = lambda p, x: x @ p["w"] + p["b"], jnp.ones((4, 2))
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros((1, 3))}
        >>> recipe = quantize_recipe(fn, params, [x], fc.QuantConfig())
        >>> int8 = fc.fake_quant(recipe.fn, recipe.config, recipe.calibration)
        >>> int8(recipe.params, x).shape
        (4, 3)
    """

    fn: Function
    params: PyTree
    calibration: Calibration
    stages: Table
    config: QuantConfig


@dataclass(frozen=True)
class _Candidate:
    """A network on its way, plain and with corrected biases; `floats` are from before rounding."""

    fn: Function
    params: PyTree
    floats: PyTree
    calibration: Calibration | None = None
    noise: float = float("inf")
    corrected: PyTree = None
    noise_corrected: float = float("inf")

    @property
    def least(self) -> float:
        """The noise of the better of both."""
        return min(self.noise, self.noise_corrected)


def quantize_recipe(
    fn: Function,
    variables: PyTree,
    batches: Batches,
    config: QuantConfig,
    *,
    rounding: bool = False,
) -> Recipe:
    """Makes a trained network ready for its integer grid, by all means that help it.

    Folds BatchNorm, gives clips a bound for each channel, zeroes dead channels, equalizes, learns
    the scales, rounds weights by their inputs (when asked), and corrects biases. A quarter of the
    batches, at least one, is held back: a stage is kept when it lowers the squared error of the
    quantized output there, `sum (fn_quantized - fn)**2`, measured with and without corrected
    biases, of which the lower counts.

    Args:
        fn: any function `fn(variables, *inputs)`.
        variables: its params; for Flax the whole tree, with live BatchNorm.
        batches: calibration inputs, or tuples of inputs; never test data. Two or more, else the
            single one is both seen and held back.
        config: the arithmetic.
        rounding: whether to try `round_weights`, which takes minutes and pays below 8 bits.

    Returns:
        The function, its params and ranges, and a table of the stages.

    Raises:
        CalibrationError: no batch, or activations that are not finite.
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
    data = [as_inputs(batch) for batch in batches]
    if not data:
        raise CalibrationError(
            "the recipe needs at least one calibration batch",
            where="batches is empty or already consumed",
            then="pass a list of inputs, or a fresh generator",
        )
    return _Kitchen(fn, variables, data, config).cook(rounding)


@dataclass
class _Kitchen:
    """The data, the float outputs to reach, and the rows so far."""

    fn: Function
    variables: PyTree
    data: Data
    config: QuantConfig
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = max(len(self.data) // 4, 1)
        self.held = self.data[-count:]
        self.seen = self.data[:-count] or self.held
        run = jax.jit(self.fn)
        self.wanted = [float_leaves(run(self.variables, *inputs)) for inputs in self.held]
        self.signal = sum(float(jnp.sum(jnp.square(out))) for outs in self.wanted for out in outs)
        self.compiled: dict[Function, Function] = {}

    def cook(self, rounding: bool) -> Recipe:
        """All stages in turn."""
        start = time.monotonic()
        naive = best = self.measured(_Candidate(self.fn, self.variables, self.variables))
        self.note("as it is", True, naive, start, "")
        best = self.tried("fold BatchNorm", self.fold, best, HARMLESS)
        best = self.tried("expose clips", self.expose, best, HARMLESS)
        best = self.tried("prune dead channels", self.prune, best, HARMLESS)
        best = self.tried("equalize", self.equalize, best)
        best = self.tried("learn scales", self.learn, best)
        if rounding:
            best = self.tried("round weights", self.round, best)
        best = min(naive, best, key=lambda one: one.least)
        corrects = best.noise_corrected < best.noise
        self.note("correct biases", corrects, best, time.monotonic(), "")
        assert best.calibration is not None
        params = best.corrected if corrects else best.params
        table = Table(COLUMNS, tuple(self.rows))
        return Recipe(best.fn, params, best.calibration, table, self.config)

    def tried(
        self,
        name: str,
        stage: Callable[[_Candidate], _Candidate],
        best: _Candidate,
        tolerance: float = 1.0,
    ) -> _Candidate:
        """The better of a network with and without a stage; one that does not apply is left out."""
        start = time.monotonic()
        try:
            new = self.measured(stage(best))
        except FlaxcleError as error:
            self.note(name, False, best, start, str(error).splitlines()[0])
            return best
        needed = tolerance > 1 and new.least <= tolerance * best.least
        kept = new.least < best.least or needed
        self.note(name, kept, new, start, "")
        return new if kept else best

    def note(self, name: str, kept: bool, one: _Candidate, start: float, remark: str) -> None:
        """A row of the table."""
        seconds = round(time.monotonic() - start, 1)
        plain, corrected = self.decibel(one.noise), self.decibel(one.noise_corrected)
        self.rows.append((name, kept, plain, corrected, seconds, remark))

    def decibel(self, noise: float) -> float:
        """The SQNR."""
        with np.errstate(divide="ignore"):
            return round(float(10 * np.log10(np.divide(self.signal, noise))), 2)

    def measured(self, one: _Candidate) -> _Candidate:
        """The candidate with its noise on the batches that were held back."""
        ranges = calibrate(one.fn, one.floats, self.seen, self.config)
        corrected = correct_bias(one.fn, one.params, self.seen, self.config, reference=one.floats)
        run = self.compiled.setdefault(one.fn, jax.jit(self.quantized(one.fn)))
        return replace(
            one,
            calibration=ranges,
            noise=self.noise(run, one.params, ranges),
            corrected=corrected,
            noise_corrected=self.noise(run, corrected, ranges),
        )

    def noise(self, run: Function, params: PyTree, ranges: Calibration) -> float:
        """The squared error of the quantized outputs; infinite where they are not finite."""
        total = 0.0
        for inputs, wanted in zip(self.held, self.wanted, strict=True):
            pairs = zip(float_leaves(run(params, ranges, inputs)), wanted, strict=True)
            total += sum(float(jnp.sum(jnp.square(got - want))) for got, want in pairs)
        return total if np.isfinite(total) else float("inf")

    def quantized(self, fn: Function) -> Function:
        """The simulation as a function of params and ranges, so that it compiles once."""

        def run(params: PyTree, ranges: Calibration, inputs: tuple[Any, ...]) -> Any:
            return fake_quant(fn, self.config, ranges)(params, *inputs)

        return run

    def fold(self, one: _Candidate) -> _Candidate:
        """BatchNorm into the kernels."""
        return _moved(one, fold_batch_norm(one.fn, one.params, *self.seen[0]))

    def expose(self, one: _Candidate) -> _Candidate:
        """A bound for each channel of a clip."""
        fn, params = expose_clips(one.fn, one.params, *self.seen[0])
        return _Candidate(fn, params, params)

    def prune(self, one: _Candidate) -> _Candidate:
        """Dead channels zeroed."""
        return _moved(one, prune_dead_channels(one.fn, one.params, *self.seen[0]))

    def equalize(self, one: _Candidate) -> _Candidate:
        """Weight ranges balanced, in every group."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        return _moved(one, equalize(one.params, spec.select()))

    def learn(self, one: _Candidate) -> _Candidate:
        """Scales by predicted noise."""
        spec = find_spec(one.fn, one.params, *self.seen[0])
        scales = learn_scales(one.fn, one.params, spec, self.seen, self.config)
        return _moved(one, apply_scales(one.params, scales, spec))

    def round(self, one: _Candidate) -> _Candidate:
        """Weights up or down by their inputs."""
        return replace(one, params=round_weights(one.fn, one.params, self.seen, self.config))


def _moved(one: _Candidate, params: PyTree) -> _Candidate:
    return _Candidate(one.fn, params, params)
