"""Calibration: what is known of the activations, from sample data.

The range of every tensor that a quantizer will read, and the magnitude of each channel that a
weight is multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.cache import compiled
from flaxcle.errors import CalibrationError, WeightError
from flaxcle.jaxpr import Op, computed, trace
from flaxcle.paths import PyTree, is_float, leaf_name, named_leaves, parent, strip_collection
from flaxcle.quantize.channels import (
    ChannelRange,
    Reader,
    channel_ranges,
    find_readers,
    looked_at,
    merge_channels,
)
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.observe import State, look, merge, range_of
from flaxcle.quantize.plan import Plan, make_plan
from flaxcle.tables import Table

Batches = Iterable[Any]
States = dict[str, State]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("low", "high", "weights", "channels"),
    meta_fields=("layers",),
)
@dataclass(frozen=True)
class Calibration:
    """The ranges that calibration found.

    Attributes:
        low, high: quantizer name -> smallest and largest value; inside `scan` one per iteration.
        weights: leaf path -> array [min, max], as a person reads it in the table.
        layers: (quantizer name, layer) pairs.
        channels: leaf path -> how large the input that it is multiplied with is in each channel:
            `peak`, `mean`, and the `axes` of the leaf that they lie along. A weight that is
            computed from others has none.

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
    channels: dict[str, ChannelRange] = field(default_factory=dict)

    def averaged(self) -> Calibration:
        """The same with the mean magnitude of each channel in the place of its peak.

        `solve` balances with AWQ's magnitudes instead of SmoothQuant's when it gets this one.
        """
        means = {path: replace(one, peak=one.mean) for path, one in self.channels.items()}
        return replace(self, channels=means)

    def table(self) -> Table:
        """One row per learnable and per activation: layer, kind, name, min, max."""
        rows = []
        for path, extremes in self.weights.items():
            low, high = np.asarray(extremes, np.float64)
            layer = parent(strip_collection(path))
            rows.append((layer, "learnable", leaf_name(path), float(low), float(high)))
        for name, layer in self.layers:
            low, high = np.min(self.low[name]), np.max(self.high[name])
            rows.append((layer, "activation", name, float(low), float(high)))
        return Table(("layer", "kind", "name", "min", "max"), tuple(rows))

    def __rich__(self) -> Table:
        """What `rich.print` shows."""
        return self.table()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.table().to_html()


class _Watch:
    """Action: run the op and report the state of some of its operands, and of its channels."""

    feeds: tuple[str, ...] = ()

    def __init__(self, operands: Mapping[int, str], reader: Reader | None, observer: str) -> None:
        self.operands = operands
        self.reader = reader
        self.observer = observer

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        states, ends = {}, {}
        if self.reader is not None:
            k = self.reader.operand
            states[self.reader.name], ends[k] = self.reader.look(operands[k])
        for k, name in self.operands.items():
            states[name] = look(operands[k], self.observer, ends.get(k))
        return computed(op, *operands), {
            f"{name}:{key}": value for name, state in states.items() for key, value in state.items()
        }


def no_batch(what: str) -> CalibrationError:
    """The error that says so."""
    return CalibrationError(
        what,
        where="batches is empty or already consumed",
        then="pass a list of inputs, or a fresh generator",
    )


def listed(batches: Batches, what: str) -> list[tuple[Any, ...]]:
    """All batches as tuples of inputs.

    Raises:
        CalibrationError: there is none; `what` begins its text.
    """
    data = [as_inputs(batch) for batch in batches]
    if not data:
        raise no_batch(what)
    return data


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
        The ranges, keyed by quantizer, which `fake_quant` reads, and the channels, keyed by
        weight, which `solve` reads.

    Raises:
        CalibrationError: no batch, a NaN or infinite activation, or a quantizer that no batch
            reached (inside a branch that was never taken).
        WeightError: a weight holds NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params = {"kernel": jnp.full((2, 1), 0.5)}
        >>> calibration = fc.calibrate(fn, params, [jnp.ones((4, 2))], fc.QuantConfig())
        >>> float(calibration.high["output_0"])
        1.0
    """
    data = map(as_inputs, batches)
    first = next(data, None)
    if first is None:
        raise no_batch("calibration needs at least one batch")
    weights = _extremes({p: x for p, x in named_leaves(params).items() if _has_range(x)})
    plan = make_plan(trace(fn, params, *first))
    _check_weights(plan, weights)
    readers = find_readers(plan.flow).values()
    states, channels = _collect(fn, params, chain([first], data), config)
    _check_finite(states)
    ranges = ranges_found(states, config)
    return Calibration(
        {name: low for name, (low, _) in ranges.items()},
        {name: high for name, (_, high) in ranges.items()},
        weights,
        tuple((q.name, q.layer) for q in plan.activations().values()),
        channel_ranges(tuple(readers), channels),
    )


def _collect(
    fn: Callable[..., Any], params: PyTree, data: Iterable[tuple[Any, ...]], config: QuantConfig
) -> tuple[States, States]:
    """The states of all activation quantizers and of all readers, over all batches."""
    watch = compiled(watched, fn, config.act_observer)
    join = compiled(joined, config.act_observer, config.momentum)
    return reduce(join, (watch(params, inputs) for inputs in data))


def ranges_found(states: States, config: QuantConfig) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The range (low, high) of every quantizer."""
    return compiled(_ranges_of, config)(states)


def _ranges_of(config: QuantConfig, states: States) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: range_of(state, config) for name, state in states.items()}


def watched(
    fn: Callable[..., Any], observer: str, params: PyTree, inputs: tuple[Any, ...]
) -> tuple[States, States]:
    """The states of all activation quantizers and of all readers on one batch."""
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    readers = find_readers(plan.flow)
    watches = {
        op: _Watch(names, readers.get(op), observer)
        for op, names in looked_at(plan, readers).items()
    }
    outputs, taps = program.run(params, inputs, watches)
    states: States = {}
    for tap, value in taps.items():
        name, _, key = tap.rpartition(":")
        states.setdefault(name, {})[key] = value
    channels = {reader.name: states.pop(reader.name) for reader in readers.values()}
    ends = zip([*plan.inputs, *plan.outputs], [*jax.tree.leaves(inputs), *outputs], strict=True)
    rest = ((q.name, x) for q, x in ends if q is not None and q.name not in states)
    return states | {name: look(jnp.asarray(x), observer) for name, x in rest}, channels


def joined(
    observer: str, momentum: float, old: tuple[States, States], new: tuple[States, States]
) -> tuple[States, States]:
    """The states of two batches as those of one."""
    states = {name: merge(old[0][name], new[0][name], observer, momentum) for name in old[0]}
    channels = {name: merge_channels(old[1][name], new[1][name]) for name in old[1]}
    return states, channels


@jax.jit
def _extremes(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.stack([jnp.min(leaf), jnp.max(leaf)]) for path, leaf in leaves.items()}


def _has_range(leaf: Any) -> bool:
    return is_float(leaf) and jnp.size(leaf) > 0


def _check_weights(plan: Plan, extremes: Mapping[str, jax.Array]) -> None:
    for op, operands in plan.at.items():
        for k, quantizer in operands.items():
            path = plan.flow[op.inputs[k]].leaf if quantizer.weight else None
            if path in extremes and not np.isfinite(extremes[path]).all():
                raise WeightError(
                    "can't quantize a weight that holds NaN or infinity",
                    where=f"{path!r}, which {quantizer.name!r} reads",
                    then="check the training run or the checkpoint",
                )


def _check_finite(states: Mapping[str, State]) -> None:
    missing = [name for name, state in states.items() if np.isnan(state["low"]).any()]
    if missing:
        raise CalibrationError(
            "no calibration batch reached these quantizers",
            where=", ".join(map(repr, missing)),
            then="add batches that take every branch",
        )
    broken = [name for name, state in states.items() if not _finite(state)]
    if broken:
        raise CalibrationError(
            "the float network gives NaN or infinite activations",
            where=", ".join(map(repr, broken)),
            then="check the params and the calibration inputs",
        )


def _finite(state: State) -> bool:
    return bool(np.isfinite(state["low"]).all() and np.isfinite(state["high"]).all())
