"""Weighted sums: convolutions, matrix products, means, pools.

    E[W x] = W E[x],      Var[W x] = W**2 Var[x]       for independent x; sums are Gaussian

A result is the mean over positions: a tap that meets zero padding at some of them counts for the
rest. The mean and spread of a maximum over positions are taken for those of one position, which is
too low. The invariant: an error in the weights dW adds dW E[x] to the mean of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.moments.known import Known, gaussian
from flaxcle.jaxpr import Op

Snap = Callable[[Op, int, Any], Any]


def contraction(op: Op, operands: Sequence[Known], snap: Snap) -> Known | None:
    """A convolution or matrix product with a weight; `snap` rounds that to its grid."""
    random = [k for k in (0, 1) if operands[k].latent is not None]
    if len(random) != 1:
        return None
    (k,) = random
    x = operands[k]
    multiply = _product if op.primitive == "dot_general" else _convolution
    if multiply is _convolution and (k == 1 or op.params["batch_group_count"] != 1):
        return None
    weight = jnp.broadcast_to(operands[1 - k].points[0], op.inputs[1 - k].shape)
    w, snapped = _wide(weight), _wide(snap(op, 1 - k, weight))
    mean, out = x.mean, op.outputs[0]
    result = gaussian(multiply(op, k, mean, w), multiply(op, k, x.var, w**2), id(out), out.dtype)
    return result.with_error(multiply(op, k, mean, snapped - w))


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _product(op: Op, k: int, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    contracted, batch = op.params["dimension_numbers"]
    whole = (*contracted[k], *batch[k])
    full = op.inputs[k].shape
    x = np.broadcast_to(x, [full[a] if a in whole else n for a, n in enumerate(x.shape)])
    arrays = (x, w) if k == 0 else (w, x)
    left, right = (list(range(array.ndim)) for array in arrays)
    right = [axis + len(left) for axis in right]
    for one, two in zip((*contracted[0], *batch[0]), (*contracted[1], *batch[1]), strict=True):
        right[two] = left[one]
    shared = [left[axis] for axis in batch[0]]
    summed = {left[axis] for axis in contracted[0]}
    free = [a for a in (*left, *right) if a not in summed and a not in shared]
    return np.einsum(arrays[0], left, arrays[1], right, [*shared, *free])


def _convolution(op: Op, _: int, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sum over the taps, each as often as it meets a value of the input."""
    params = op.params
    lhs, rhs, out = params["dimension_numbers"]
    groups, features = params["feature_group_count"], op.inputs[0].shape[lhs[1]]
    x = x.mean(tuple(lhs[2:]), keepdims=True).transpose(lhs).reshape(x.shape[lhs[0]], -1)
    x = np.broadcast_to(x, (x.shape[0], features)).reshape(x.shape[0], groups, -1)
    w = w.transpose(rhs)
    for shares in reversed(_shares(op)):
        w = w @ shares
    w = w.reshape(groups, -1, w.shape[1])
    y = np.einsum("bgi,goi->bgo", x, w).reshape(x.shape[0], -1)
    return y.reshape(*y.shape, *(1,) * len(lhs[2:])).transpose(np.argsort(out))


def _shares(op: Op) -> list[np.ndarray]:
    """Per spatial axis and tap the share of the results at which it meets the input."""
    params = op.params
    lhs, rhs, out = params["dimension_numbers"]
    return [
        _share(
            op.inputs[0].shape[lhs[2 + k]],
            op.outputs[0].shape[out[2 + k]],
            (op.inputs[1].shape[rhs[2 + k]], params["rhs_dilation"][k]),
            (params["window_strides"][k], params["padding"][k][0], params["lhs_dilation"][k]),
        )
        for k in range(len(lhs) - 2)
    ]


def _share(
    size: int, results: int, taps: tuple[int, int], window: tuple[int, int, int]
) -> np.ndarray:
    """Taps are (count, dilation), the window (stride, padding in front, dilation of the input)."""
    (count, step), (stride, low, gap) = taps, window
    position = stride * np.arange(results)[:, None] + step * np.arange(count) - low
    inside = (position >= 0) & (position <= (size - 1) * gap) & (position % gap == 0)
    return inside.mean(0)


def reduce_sum(op: Op, operands: Sequence[Known]) -> Known:
    """A sum over axes."""
    (x,), axes = operands, tuple(op.params["axes"])
    repeats = float(np.prod([op.inputs[0].shape[a] for a in axes if x.shape[a] == 1]))
    return _scaled(op, x, repeats, lambda array: array.sum(axes))


def reduce_window_sum(op: Op, operands: Sequence[Known]) -> Known | None:
    """A sum over windows of positions."""
    (x,), params = operands, op.params
    window = params["window_dimensions"]
    if any(n > 1 and size > 1 for n, size in zip(window, x.shape, strict=True)):
        return None
    axes = zip(
        op.inputs[0].shape,
        op.outputs[0].shape,
        zip(window, params["window_dilation"], strict=True),
        zip(
            params["window_strides"],
            (low for low, _ in params["padding"]),
            params["base_dilation"],
            strict=True,
        ),
        strict=True,
    )
    repeats = [_share(*axis).sum() for axis in axes]
    return _scaled(op, x, float(np.prod(repeats)), lambda array: array)


def _scaled(op: Op, x: Known, repeats: float, add: Callable[[np.ndarray], np.ndarray]) -> Known:
    out = op.outputs[0]
    mean = repeats * add(x.mean)
    if x.latent is None:
        return Known(jnp.asarray(mean).astype(out.dtype)[None])
    error = None if x.error is None else repeats * add(np.broadcast_to(x.error, x.shape))
    return gaussian(mean, repeats * add(x.var), id(out), out.dtype).with_error(error)


def maximum(op: Op, operands: Sequence[Known]) -> Known | None:
    """A maximum over positions."""
    (x,), axes = operands, op.params.get("axes", ())
    window = op.params.get("window_dimensions", (1,) * len(x.shape))
    merged = (*axes, *(axis for axis, n in enumerate(window) if n > 1))
    if any(x.shape[axis] > 1 for axis in merged):
        return None
    kept = [n for axis, n in enumerate(x.shape) if axis not in axes]
    latent = None if x.latent is None else (x.latent, id(op.outputs[0]))
    return Known(x.points.reshape(-1, *kept), latent)
