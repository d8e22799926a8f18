"""`learn_scales`: the scales with the least predicted noise, found by gradient descent.

One backward pass per calibration batch measures the sensitivities; every step after that works on
reduced matrices and never runs the network. The p of the p-norm that stands for the largest entry
grows from 4 to 64, and after each leg the scales with the least noise, largest entries taken as
they are, are kept. The invariant: the result is never worse, by that measure, than scale 1 and
than `solve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcle.descent import descended
from flaxcle.errors import CalibrationError, ConfigError
from flaxcle.jaxpr import trace
from flaxcle.learn.noise import Term, noise, norms_of, soft_noise, terms_of
from flaxcle.learn.sensitivity import Sensitivity, measure
from flaxcle.learn.sources import Source, find_sources, offsets
from flaxcle.paths import PyTree
from flaxcle.quantize.calibrate import Batches, listed
from flaxcle.quantize.config import QuantConfig
from flaxcle.solve import solve
from flaxcle.spec import Scales, Spec, check_fit

LEG = 25
FIRST_P, LAST_P = 4.0, 64.0
RATE = 0.05
LIMIT = 10.0  # log2: no scale is larger than 1024, as in `solve`
REACH = 48.0  # log2 of the largest power of a scale that a leg may make, within float32


def learn_scales(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    batches: Batches,
    config: QuantConfig,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 500,
) -> Scales:
    """Finds the scales with the least predicted quantization noise at the output.

        J = sum over quantizers of  step**2 / 12 * sum_p (d output / d value[p])**2

    `step` is the step size of the quantizer at these scales: the largest weight or activation of
    the tensor (of the channel, per channel) over the number of levels. The squared gradients are
    those of a random projection of the outputs, one backward pass for each batch; they count what
    `correct_bias` leaves, so correct the biases afterwards. The descent itself does not run the
    network. Unlike `solve` it weighs activations against weights, and moves groups that are held.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: float params, folded and pruned.
        spec: which scales may move.
        batches: calibration inputs, or tuples of inputs; never test data.
        config: the arithmetic: bits, granularity, symmetry. Ranges are taken as the extremes.
        optimizer: of optax, on the vector of all log2 scales; Adam with a cosine decay from 0.05.
        steps: number of descent steps.

    Returns:
        Scales for `apply_scales`: those with the least J of all that were seen, where scale 1 and
        the scales of `solve` are among them.

    Raises:
        CalibrationError: no batch, or an output or gradient that is not finite.
        ConfigError: `steps` is negative.
        SpecError, PathError, WeightError: the spec does not fit the params; see `check_fit`.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jnp.maximum(x @ p["a"], 0) @ p["b"]
        >>> params = {"a": jnp.array([[8.0, 0.1]]), "b": jnp.array([[0.1], [8.0]])}
        >>> pair = fc.Group("a -> b", (2,), (fc.Site("a", (1,)), fc.Site("b", (0,), -1)))
        >>> spec, x = fc.Spec((pair,)), jnp.linspace(-1, 1, 64)[:, None]
        >>> scales = learn_scales(fn, params, spec, [x], fc.QuantConfig())
        >>> bool(scales["a -> b"][0] < scales["a -> b"][1])
        True

    Source: the noise model is that of first-order sensitivity with uniform rounding errors; its
    moves are the rescalings of Nagel et al. 2019, arXiv:1906.04721.
    """
    if steps < 0:
        raise ConfigError(f"steps can't be {steps!r}", then="pass 0 or more")
    check_fit(spec, params)
    data = listed(batches, "learning scales needs at least one batch")
    starts = (Scales.zeros(spec), solve(params, spec), solve(params, spec.select()))
    sources = find_sources(trace(fn, params, *data[0]), spec, config)
    found = measure(fn, params, spec, data, config)
    _check_finite(found)
    problem = _Problem(sources.all, terms_of(sources, found, config))
    optimizer = optimizer or optax.adam(optax.cosine_decay_schedule(RATE, max(steps, 1)))
    choices = [_vector(scales, spec) for scales in starts]
    return _scales(_descend(problem, choices, optimizer, steps), spec)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The noise as compiled functions of the log2 scales."""

    sources: tuple[Source, ...]
    terms: Mapping[str, Term]

    @cached_property
    def measure(self) -> Callable[[jax.Array], jax.Array]:
        """The noise with hard maxima."""
        return partial(jax.jit(self._total), self.terms)

    @cached_property
    def leg(self) -> Callable[..., Any]:
        """Some steps with one p."""
        return partial(jax.jit(self._leg, static_argnames=("update", "steps")), self.terms)

    def _total(self, terms: Mapping[str, Term], x: jax.Array) -> jax.Array:
        return sum((noise(s, terms[s.name], x) for s in self.sources), jnp.zeros(()))

    def _leg(
        self,
        terms: Mapping[str, Term],
        x: jax.Array,
        state: Any,
        p: jax.Array,
        update: Any,
        steps: int,
    ) -> Any:
        norms = {s.name: norms_of(s, terms[s.name], x, p) for s in self.sources}

        def loss(now: jax.Array) -> jax.Array:
            parts = (soft_noise(s, terms[s.name], norms[s.name], now) for s in self.sources)
            return jnp.log(sum(parts, jnp.asarray(jnp.finfo(jnp.float32).tiny)))

        def step(_: int, carry: Any) -> Any:
            now, state = carry
            moved, state = descended(update, jax.grad(loss)(now), state, now)
            moved = jnp.clip(moved, -LIMIT, LIMIT)
            return jnp.clip(moved, x - REACH / p, x + REACH / p), state

        return jax.lax.fori_loop(0, steps, step, (x, state))


def _descend(
    problem: _Problem,
    choices: Sequence[jax.Array],
    optimizer: optax.GradientTransformation,
    steps: int,
) -> jax.Array:
    """The best point that the descent from the best start has met."""
    scores = [problem.measure(x) for x in choices]
    number = int(np.argmin(scores))
    x, best, least = choices[number], choices[number], scores[number]
    state = optimizer.init(x)
    legs = [LEG] * (steps // LEG) + ([steps % LEG] if steps % LEG else [])
    for p, length in zip(np.geomspace(FIRST_P, LAST_P, len(legs)), legs, strict=True):
        x, state = problem.leg(x, state, jnp.float32(p), update=optimizer.update, steps=length)
        score = problem.measure(x)
        if score < least:
            best, least = x, score
    return best


def _check_finite(found: Sensitivity) -> None:
    parts = {"gradients": found.gain, "smallest values": found.low, "largest values": found.high}
    for what, arrays in parts.items():
        broken = [name for name, values in arrays.items() if not np.isfinite(values).all()]
        if broken:
            raise CalibrationError(
                f"the {what} of these quantizers are not finite",
                where=", ".join(map(repr, broken)),
                then="check the params and the calibration inputs",
            )


def _vector(scales: Scales, spec: Spec) -> jax.Array:
    return jnp.concatenate([scales.log2[group.name].ravel() for group in spec.groups])


def _scales(x: jax.Array, spec: Spec) -> Scales:
    first = offsets(spec)
    return Scales(
        {g.name: x[first[g.name] : first[g.name] + g.size].reshape(g.shape) for g in spec.groups}
    )
