"""For each group the balance between weights and activations that costs the output least.

How far difficulty should move from activations to weights differs from group to group, and no
range tells it. So it is tried: every group in turn takes the scales of each `alpha`, or none, and
keeps those with which the quantized function is nearest to the float one. The invariant: a step
never enlarges the error on the data, and all steps run the same compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.apply import apply_scales
from flaxcle.cache import compiled
from flaxcle.errors import ConfigError
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree, float_leaves, squared_error
from flaxcle.quantize.calibrate import Batches, as_inputs, calibrate, joined, ranges_found, watched
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.fake import run_quantized
from flaxcle.quantize.plan import make_plan
from flaxcle.solve import solve
from flaxcle.solve.options import check_alpha
from flaxcle.spec import Scales, Spec, check_fit

Log2 = dict[str, Any]
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def balance_scales(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    batches: Batches,
    config: QuantConfig,
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Scales:
    """Chooses for every group the `alpha` of `solve` by the error of the quantized output.

        min over alpha of sum over data and outputs of (fn_quantized - fn)**2

    The start is the best single choice for all groups: scale 1, or one of the alphas. Then each
    group in the order of the spec tries all of them, with the others as they stand. The ranges of
    the activations are measured anew for every trial. With activations in float (`act_bits=None`)
    the mean magnitude of an input counts, as in AWQ, else its peak, as in SmoothQuant.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its float params.
        spec: which scales may move. Groups that are `held` stay at 1.
        batches: calibration inputs, or tuples of inputs; a few hundred examples. All are kept in
            memory, and run 2 * (groups + 1) * (alphas + 1) times.
        config: the arithmetic that the network will run in.
        alphas: what to try beside scale 1, each from 0 to 1.

    Returns:
        The scales. The error on the batches is at most that of scale 1, and of `solve` with any
        of the alphas.

    Raises:
        ConfigError: no alpha, or one out of its range.
        CalibrationError: no batch, activations that are not finite, or no input of a weight that
            could be recorded.
        SpecError, PathError, WeightError: the spec does not fit the params; see `check_fit`.

    Example:
        >>> import jax, flaxcle as fc
        >>> fn = lambda p, x: (x * p["norm"]) @ p["w"]
        >>> params = {"norm": jnp.array([100.0, 1.0, 1.0]), "w": jnp.ones((3, 2))}
        >>> sites = (fc.Site("norm", (0,)), fc.Site("w", (0,), -1))
        >>> spec = fc.Spec((fc.Group("norm -> w", (3,), sites),))
        >>> data = [jax.random.uniform(jax.random.key(0), (64, 3))]
        >>> scales = balance_scales(fn, params, spec, data, fc.QuantConfig(), alphas=[0.0, 0.5])
        >>> scales["norm -> w"].round(1).tolist()
        [0.10000000149011612, 1.0, 1.0]

    Source: Lin et al. 2024, "AWQ", arXiv:2306.00978, eq. 5 (the search); Xiao et al. 2023,
    "SmoothQuant", arXiv:2211.10438, eq. 4 (the scales).
    """
    _check(params, spec, alphas)
    data = [as_inputs(batch) for batch in batches]
    solutions = list(_solutions(fn, params, spec, data, config, alphas))
    rows = [{name: jnp.zeros_like(x) for name, x in solutions[0].log2.items()}]
    rows += [solution.log2 for solution in solutions]
    choices = jax.tree.map(lambda *row: jnp.stack(row), *rows)
    errors = _Errors(fn, params, spec, data, config)
    chosen = _picked(choices, int(np.argmin(errors(choices))))
    for name in choices:
        if np.any(choices[name]):
            trials = {n: jnp.stack([x] * len(rows)) for n, x in chosen.items()}
            best = int(np.argmin(errors({**trials, name: choices[name]})))
            chosen = {**chosen, name: choices[name][best]}
    return Scales(chosen, solutions[0].kept)


def _check(params: PyTree, spec: Spec, alphas: Sequence[float]) -> None:
    if len(alphas) == 0:
        raise ConfigError("there is no alpha to try", then="pass one or more numbers from 0 to 1")
    for alpha in alphas:
        check_alpha(alpha)
    check_fit(spec, params)


def _solutions(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    data: Sequence[tuple[Any, ...]],
    config: QuantConfig,
    alphas: Sequence[float],
) -> Iterator[Scales]:
    """The scales of all groups for each alpha."""
    ranges = calibrate(fn, params, data, config)
    if config.act_bits is None:
        ranges = ranges.averaged()
    granularity = config.weight_granularity
    for alpha in alphas:
        yield solve(params, spec, ranges=ranges, alpha=alpha, granularity=granularity)


def _picked(choices: Log2, number: int) -> Log2:
    return {name: x[number] for name, x in choices.items()}


class _Errors:
    """The squared output errors of the quantized function at some scales, one trial a row.

    Trials run one after the other in a compiled loop: all at once would multiply the memory.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: PyTree,
        spec: Spec,
        data: Sequence[tuple[Any, ...]],
        config: QuantConfig,
    ) -> None:
        self.params, self.data, self.config = params, data, config
        self.wanted = [float_leaves(jax.jit(fn)(params, *inputs)) for inputs in data]
        self.watch = compiled(_states, fn, spec, config)
        self.join = compiled(joined, config.act_observer, config.momentum)
        self.error = compiled(_squared_errors, fn, spec, config)

    def __call__(self, trials: Log2) -> np.ndarray:
        """The error of each trial over all data; infinite where it is not a number."""
        seen = (self.watch(self.params, trials, inputs) for inputs in self.data)
        states, _ = reduce(self.join, ((state, {}) for state in seen))
        feed = {}
        for name, ends in ranges_found(states, self.config).items():
            feed[f"{name}:low"], feed[f"{name}:high"] = ends
        pairs = zip(self.data, self.wanted, strict=True)
        parts = [self.error(self.params, trials, feed, *pair) for pair in pairs]
        total = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        return np.where(np.isnan(total), np.inf, total)


def _states(
    fn: Callable[..., Any],
    spec: Spec,
    config: QuantConfig,
    params: PyTree,
    trials: Log2,
    inputs: tuple[Any, ...],
) -> Any:
    """What the observers see of one batch, for each trial."""

    def one(log2: Log2) -> Any:
        moved = apply_scales(params, Scales(log2), spec)
        return watched(fn, config.act_observer, moved, inputs)[0]

    return lax.map(one, trials)


def _squared_errors(
    fn: Callable[..., Any],
    spec: Spec,
    config: QuantConfig,
    params: PyTree,
    trials: Log2,
    feed: dict[str, Any],
    inputs: tuple[Any, ...],
    wanted: list[jax.Array],
) -> jax.Array:
    """The error of the quantized function on one batch, for each trial."""

    def one(trial: tuple[Log2, dict[str, Any]]) -> jax.Array:
        log2, ranges = trial
        moved = apply_scales(params, Scales(log2), spec)
        program = trace(fn, moved, *inputs)
        plan = make_plan(program)
        found = run_quantized(program, plan, moved, inputs, config, ranges).outputs
        return squared_error(found, wanted)

    return lax.map(one, (trials, feed))
