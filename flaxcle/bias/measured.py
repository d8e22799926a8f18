"""What the calibration data say of each biased result: how low and how high its channels go.

The invariant: extremes are those of all the data; the deviation is that of all the data too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd
from flaxcle.bias.routes import Route
from flaxcle.jaxpr import Op, trace
from flaxcle.paths import PyTree, wide_dtype


class Range(NamedTuple):
    """Per channel of a bias: its extremes, moments, and the room below the nearest clip."""

    low: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    room: np.ndarray


def measure(
    fn: Callable[..., Any],
    params: PyTree,
    data: Sequence[tuple[Any, ...]],
    find: Callable[[Any], tuple[Sequence[Route], Mapping[Op, BiasAdd]]],
) -> dict[str, Range]:
    """The ranges of the results that the routes of `find` start from, by name of the bias add."""

    @jax.jit
    def run(params: PyTree, inputs: Any) -> dict[str, Any]:
        program = trace(fn, params, *inputs)
        routes, adds = find(program)
        actions: dict[Op, _Look] = {}
        for route in routes:
            for op in (route.start, *route.clips):
                look = actions.setdefault(op, _Look())
                look.seen.append((adds[route.start], route.clips.get(op)))
        return program.run(params, inputs, actions).taps

    taps = [jax.tree.map(_host, run(params, inputs)) for inputs in data]
    names = {key for key in taps[0] if not key.endswith(_ROOM)}
    return {name: _range(name, taps) for name in names}


_ROOM = "\nroom"


class _Look:
    """Action: the moments of a biased result, or the room that a clip leaves above it."""

    feeds = ()

    def __init__(self) -> None:
        self.seen: list[tuple[BiasAdd, int | None]] = []

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        outputs, taps = op.bind(*operands), {}
        for add, bound in self.seen:
            if bound is None:
                taps[add.name] = _moments(add, outputs[0])
            else:
                x = operands[1] if op.primitive == "clamp" else operands[1 - bound]
                room = jnp.broadcast_to(operands[bound], x.shape) - x
                taps[f"{add.name}\n{bound}{_ROOM}"] = add.per_channel(jnp.min, room)
        return outputs, taps


def _moments(add: BiasAdd, out: jax.Array) -> dict[str, jax.Array]:
    wide = out.astype(wide_dtype(out.dtype))
    low, mean, var = (add.per_channel(f, wide) for f in (jnp.min, jnp.mean, jnp.var))
    return {"low": low, "mean": mean, "var": var, "size": jnp.asarray(out.size, wide.dtype)}


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _range(name: str, taps: Sequence[Mapping[str, Any]]) -> Range:
    batches = [tap[name] for tap in taps]
    sizes = [batch["size"] for batch in batches]
    means = np.stack([batch["mean"] for batch in batches])
    mean = np.average(means, 0, sizes)
    inside = np.average([batch["var"] for batch in batches], 0, sizes)
    between = np.average((means - mean) ** 2, 0, sizes)
    rooms = [tap[key] for tap in taps for key in tap if _is_room(key, name)]
    room = np.min(rooms, 0) if rooms else np.full(mean.shape, np.inf)
    low = np.min([batch["low"] for batch in batches], 0)
    return Range(low, mean, np.sqrt(inside + between), room)


def _is_room(key: str, name: str) -> bool:
    return key.endswith(_ROOM) and key.startswith(f"{name}\n")
