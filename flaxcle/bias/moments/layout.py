"""Ops that move values: the channels go along, and stay functions of the same Gaussians.

The invariant: axes along which a value is constant stay of size one as long as they can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.moments.known import Known
from flaxcle.jaxpr import Op
from flaxcle.jaxpr.layout import reshape_axes

Move = Callable[[Op, Any], Any]


def view(op: Op, operands: Sequence[Known]) -> Known | None:
    """A rearrangement of one operand."""
    return _moved(op, operands[0], _VIEWS[op.primitive])


def _moved(op: Op, x: Known, move: Move) -> Known:
    error = None if x.error is None else np.asarray(move(op, x.error[None]))[0]
    latent = None if x.latent is None else (x.latent, op.primitive, _key(op))
    return Known(move(op, x.points), latent, error)


def _key(op: Op) -> str:
    shapes = f"{op.inputs[0].shape} {op.outputs[0].shape}"
    return f"{shapes} {sorted((k, str(v)) for k, v in op.params.items())}"


def _transpose(op: Op, x: Any) -> Any:
    return x.transpose(0, *(axis + 1 for axis in op.params["permutation"]))


def _broadcast(op: Op, x: Any) -> Any:
    shape = [1] * len(op.outputs[0].shape)
    for axis, target in enumerate(op.params["broadcast_dimensions"]):
        shape[target] = x.shape[1 + axis]
    return x.reshape(-1, *shape)


def _squeeze(op: Op, x: Any) -> Any:
    gone = op.params["dimensions"]
    return x.reshape(-1, *(n for axis, n in enumerate(x.shape[1:]) if axis not in gone))


def _reshape(op: Op, x: Any) -> Any:
    """Spread only over the axes that the reshape mixes with those that are not constant."""
    source, target = op.inputs[0].shape, op.outputs[0].shape
    varying = [axis for axis, size in enumerate(x.shape[1:]) if size > 1]
    inside, outside = reshape_axes(varying, source, target)
    spread = [source[axis] if axis in inside else 1 for axis in range(len(source))]
    kept = [target[axis] if axis in outside else 1 for axis in range(len(target))]
    return jnp.broadcast_to(x, (x.shape[0], *spread)).reshape(x.shape[0], *kept)


def _reverse(op: Op, x: Any) -> Any:
    return jnp.flip(jnp.asarray(x), tuple(axis + 1 for axis in op.params["dimensions"]))


def _slice(op: Op, x: Any) -> Any:
    params = op.params
    strides = params["strides"] or (1,) * len(op.inputs[0].shape)
    parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cuts = [slice(*part) for part in parts]
    cuts = [cut if n > 1 else slice(None) for cut, n in zip(cuts, x.shape[1:], strict=True)]
    return x[(slice(None), *cuts)]


_VIEWS: dict[str, Move] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
}


def concatenate(op: Op, operands: Sequence[Known]) -> Known:
    """Channels of several values side by side."""
    axis = op.params["dimension"] + 1
    common = np.broadcast_shapes(*(_without(x.points.shape, axis) for x in operands))
    parts = []
    for x, value in zip(operands, op.inputs, strict=True):
        shape = [*common[:axis], value.shape[axis - 1], *common[axis + 1 :]]
        parts.append(jnp.broadcast_to(x.points, shape))
    latents = tuple(x.latent for x in operands)
    static = all(latent is None for latent in latents)
    return Known(jnp.concatenate(parts, axis), None if static else (latents, _key(op)))


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def split(op: Op, operands: Sequence[Known]) -> list[Known]:
    """The parts of one value."""
    (x,), axis = operands, op.params["axis"]
    ends = np.cumsum(op.params["sizes"])
    found = []
    for number, (end, size) in enumerate(zip(ends, op.params["sizes"], strict=True)):
        whole = x.shape[axis] == 1
        cut = slice(None) if whole else slice(int(end - size), int(end))
        index = (*(slice(None),) * (axis + 1), cut)
        latent = None if x.latent is None else (x.latent, _key(op), number)
        error = None if x.error is None or not whole else x.error
        found.append(Known(x.points[index], latent, error))
    return found


def pad(op: Op, operands: Sequence[Known]) -> Known | None:
    """Padding among channels counts, padding of positions does not."""
    x, value = operands
    config = op.params["padding_config"]
    varying = [n > 1 for n in x.shape]
    if any(min(part) < 0 and wide for part, wide in zip(config, varying, strict=True)):
        return None
    own = [part if wide else (0, 0, 0) for part, wide in zip(config, varying, strict=True)]
    if value.latent is not None:
        return None
    (points,) = [_padded(x.points, value.points[0], own)]
    latent = None if x.latent is None else (x.latent, _key(op))
    return Known(points, latent)


def _padded(points: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    for axis, (low, high, inside) in enumerate(config, start=1):
        count = points.shape[axis]
        size = low + high + count + inside * max(count - 1, 0)
        at = low + (inside + 1) * np.arange(count)
        shape = (*points.shape[:axis], size, *points.shape[axis + 1 :])
        spread = jnp.broadcast_to(jnp.asarray(value).astype(points.dtype).reshape(()), shape)
        points = spread.at[(*(slice(None),) * axis, at)].set(points)
    return points
