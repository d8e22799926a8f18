"""Calibration: the range of every activation that a quantizer will read, from sample data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.errors import CalibrationError
from flaxcle.jaxpr import Op, Program, trace
from flaxcle.paths import PyTree, is_float, leaf_name, named_leaves, parent, strip_collection
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.observe import State, look, merge, range_of
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.tables import Table

Batches = Iterable[Any]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("low", "high", "weights"),
    meta_fields=("layers",),
)
@dataclass(frozen=True)
class Calibration:
    """The ranges that calibration found.

    Attributes:
        low, high: quantizer name -> smallest and largest value; inside `scan` one per iteration.
        weights: leaf path -> array [min, max], as a person reads it in the table.
        layers: (quantizer name, layer) pairs.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params = {"kernel": jnp.ones((2, 1))}
        >>> print(fc.calibrate(fn, params, [jnp.ones((4, 2))], fc.QuantConfig()).table())
        layer     kind        name      min  max
                  learnable   kernel      1    1
        input_0   activation  input_0     1    1
        output_0  activation  output_0    2    2
    """

    low: dict[str, jax.Array]
    high: dict[str, jax.Array]
    weights: dict[str, jax.Array]
    layers: tuple[tuple[str, str], ...] = ()

    def table(self) -> Table:
        """One row per learnable and per activation: layer, kind, name, min, max."""
        rows = []
        for path, extremes in self.weights.items():
            low, high = np.asarray(extremes, np.float64)
            layer = strip_collection(parent(path))
            rows.append((layer, "learnable", leaf_name(path), float(low), float(high)))
        for name, layer in self.layers:
            low, high = np.min(self.low[name]), np.max(self.high[name])
            rows.append((layer, "activation", name, float(low), float(high)))
        return Table(("layer", "kind", "name", "min", "max"), tuple(rows))


class _Watch:
    """Action: run the op and report the state of its quantized operands."""

    feeds: tuple[str, ...] = ()

    def __init__(self, operands: Mapping[int, Quantizer], observer: str) -> None:
        self.operands = {k: q for k, q in operands.items() if not q.weight}
        self.observer = observer

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        taps = {}
        for k, quantizer in self.operands.items():
            state = look(operands[k], self.observer)
            taps |= {f"{quantizer.name}:{key}": value for key, value in state.items()}
        return op.bind(*operands), taps


def observe(
    program: Program, plan: Plan, observer: str, params: PyTree, inputs: Sequence[Any]
) -> dict[str, State]:
    """The states of all activation quantizers on one batch."""
    watch = {op: _Watch(operands, observer) for op, operands in plan.at.items()}
    result = program.run(params, inputs, watch)
    states: dict[str, State] = {}
    for tap, value in result.taps.items():
        name, _, key = tap.rpartition(":")
        states.setdefault(name, {})[key] = value
    ends = zip(
        [*plan.inputs, *plan.outputs], [*jax.tree.leaves(inputs), *result.outputs], strict=True
    )
    return states | {q.name: look(jnp.asarray(x), observer) for q, x in ends if q is not None}


def as_inputs(batch: Any) -> tuple[Any, ...]:
    """A batch as the tuple of the function's inputs."""
    return batch if isinstance(batch, tuple) else (batch,)


def calibrate(
    fn: Callable[..., Any], params: PyTree, batches: Batches, config: QuantConfig
) -> Calibration:
    """Runs the float network on sample data and records the range of each activation.

    Calibrate after equalizing: ranges change. Never calibrate on test data.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params.
        batches: an iterable of inputs, or of tuples of inputs. It is read once.
        config: `act_observer`, `percentile` and `momentum` are used, and `act_bits` by `"mse"`.

    Returns:
        The ranges, keyed by quantizer; `fake_quant` reads them.

    Raises:
        CalibrationError: no batch, a NaN or infinite activation, or a quantizer that no batch
            reached (inside a branch that was never taken).

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params = {"kernel": jnp.full((2, 1), 0.5)}
        >>> calibration = fc.calibrate(fn, params, [jnp.ones((4, 2))], fc.QuantConfig())
        >>> float(calibration.high["output_0"])
        1.0
    """
    observer = config.act_observer
    states: dict[str, State] | None = None
    layers: tuple[tuple[str, str], ...] = ()

    @jax.jit
    def step(
        params: PyTree, inputs: tuple[Any, ...], old: dict[str, State] | None
    ) -> dict[str, State]:
        nonlocal layers
        program = trace(fn, params, *inputs)
        plan = make_plan(program)
        layers = tuple((q.name, q.layer) for q in plan.activations().values())
        new = observe(program, plan, observer, params, inputs)
        if old is None:
            return new
        return {name: merge(old[name], new[name], observer, config.momentum) for name in new}

    for batch in batches:
        states = step(params, as_inputs(batch), states)
    if states is None:
        raise CalibrationError(
            "calibration needs at least one batch",
            where="batches is empty or already consumed",
            then="pass a list of inputs, or a fresh generator",
        )
    return _finish(states, params, config, layers)


def _finish(
    states: dict[str, State],
    params: PyTree,
    config: QuantConfig,
    layers: tuple[tuple[str, str], ...],
) -> Calibration:
    bits = config.act_bits or 8
    find = partial(
        range_of,
        observer=config.act_observer,
        config=config,
        bits=bits,
        symmetric=config.act_symmetric,
    )
    ranges = {name: find(state) for name, state in states.items()}
    _check_finite(ranges)
    weights = {
        path: jnp.stack([jnp.min(leaf), jnp.max(leaf)])
        for path, leaf in named_leaves(params).items()
        if is_float(leaf) and jnp.size(leaf)
    }
    low = {name: pair[0] for name, pair in ranges.items()}
    return Calibration(low, {name: pair[1] for name, pair in ranges.items()}, weights, layers)


def _check_finite(ranges: Mapping[str, tuple[Any, Any]]) -> None:
    missing, broken = [], []
    for name, (low, high) in ranges.items():
        extremes = np.concatenate([np.ravel(low), np.ravel(high)])
        if np.isnan(extremes).any():
            missing.append(name)
        elif not np.isfinite(extremes).all():
            broken.append(name)
    if missing:
        raise CalibrationError(
            "no calibration batch reached these quantizers, or they saw NaN",
            where=", ".join(map(repr, missing)),
            then="add batches that take every branch, and check the float network for NaN",
        )
    if broken:
        raise CalibrationError(
            "the float network gives infinite activations",
            where=", ".join(map(repr, broken)),
            then="check the params and the calibration inputs",
        )
