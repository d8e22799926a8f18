"""Clips with a bound per channel: ReLU6 stays exact while the channels in front of it are rescaled.

    min(x, 6)  ->  min(x, m),   m a leaf of shape (channels,), at first 6 everywhere

A scale s on the producer turns m into 6 s, and the clip is exactly the old one. The invariant:
before any rescaling the new function gives bit for bit what the old one gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from flaxcle.clips.find import Clip, find_clips
from flaxcle.errors import TraceError
from flaxcle.jaxpr import Op, trace
from flaxcle.paths import PyTree

COLLECTION = "clips"


def expose_clips(
    fn: Callable[..., Any], params: PyTree, *inputs: Any
) -> tuple[Callable[..., Any], PyTree]:
    """Gives every constant clip a leaf of bounds, so that scales pass through it exactly.

    `min(x, 6)` becomes `min(x, m)` with one m per channel: `relu6(x) = min(max(x, 0), m)`. A group
    that passes it multiplies m too, so that `min(s x, s 6) = s min(x, 6)`. Upper and lower bounds
    that are finite and not zero are exposed, of `minimum`, `maximum`, `clip`, `clamp` and
    `hard_tanh`, on what a convolution or matrix product with a weight in the params makes. Behind a
    function that no scale passes (the `x + 3` of hard swish) a clip stays as it is. The model code
    stays too: the new function re-evaluates it. Inside `while` loops nothing is exposed.

    The leaves are `clips/<layer>/max` (and `/min`; `max_1`, ... for further clips), named after
    the last layer before the clip, with one value for each of its channels, and in front of that
    an axis for each `scan` around the clip. Their dtype is that of the activation.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params. A mapping with a `"params"` collection gets a collection `"clips"`
            beside it, anything else is wrapped: `{"params": params, "clips": ...}`.
        inputs: example inputs or their ShapeDtypeStructs; batch sizes may change later.

    Returns:
        The new function and its params. A function without such a clip comes back as it is, with
        its params. The new function traces the old one at each call: jit it.

    Raises:
        TraceError: no output depends on params. The new function raises it for params without
            bounds, with bounds of another function, or of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu6(x @ p["params"]["dense"]["kernel"])
        >>> params = {"params": {"dense": {"kernel": jnp.ones((2, 3))}}}
        >>> fn2, params2 = fc.expose_clips(fn, params, jnp.ones((1, 2)))
        >>> params2["clips"]["dense"]["max"].tolist()
        [6.0, 6.0, 6.0]

    References:
        The exact alternative to replacing ReLU6 by ReLU in Nagel et al. 2019, "Data-Free
        Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, 5.1.1.
    """
    found = find_clips(trace(fn, params, *inputs))
    if not found:
        return fn, params
    leaves = {
        tuple(clip.path.split("/")): jnp.full(clip.shape, clip.value, op.inputs[clip.clipped].dtype)
        for op, clips in found.items()
        for clip in clips
    }
    collections = _has_collections(params)
    return _exposed(fn, collections), _joined(params, collections, unflatten_dict(leaves))


def _has_collections(params: PyTree) -> bool:
    """Whether there is room for another collection beside the params."""
    return isinstance(params, Mapping) and "params" in params and COLLECTION not in params


def _joined(params: PyTree, collections: bool, clips: dict[str, Any]) -> PyTree:
    if not collections:
        return {"params": params, COLLECTION: clips}
    if isinstance(params, FrozenDict):
        return params.copy({COLLECTION: clips})
    return {**params, COLLECTION: clips}


def _exposed(fn: Callable[..., Any], collections: bool) -> Callable[..., Any]:
    def with_bounds(params: Any, *inputs: Any) -> Any:
        feed = _bounds_of(params)
        rest = {name: tree for name, tree in params.items() if name != COLLECTION}
        model = type(params)(rest) if collections else params["params"]
        program = trace(fn, model, *inputs)
        found = find_clips(program)
        _check_bounds({clip.path: clip.shape for own in found.values() for clip in own}, feed)
        actions = {op: _Bounded(clips) for op, clips in found.items()}
        return program.unflatten(program.run(model, inputs, actions, feed).outputs)

    return with_bounds


def _bounds_of(params: Any) -> dict[str, Any]:
    """The bounds by path within their collection."""
    if not isinstance(params, Mapping) or COLLECTION not in params:
        raise TraceError(
            f"these params have no {COLLECTION!r}, the bounds of this function",
            then="pass the params that expose_clips returned with it",
        )
    bounds = flatten_dict(dict(params[COLLECTION]))
    return {"/".join(path): leaf for path, leaf in bounds.items()}


def _check_bounds(needed: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> None:
    if needed.keys() != given.keys():
        missing, unknown = sorted(needed.keys() - given), sorted(given.keys() - needed)
        raise TraceError(
            "the bounds in params don't belong to the clips of this function",
            where=f"missing {missing}, unknown {unknown}",
            then="call expose_clips again with the inputs that you evaluate on",
        )
    for path, shape in needed.items():
        if jnp.shape(given[path]) != shape:
            raise TraceError(
                "a bound does not have one value a channel",
                where=f"'{COLLECTION}/{path}' has shape {jnp.shape(given[path])} and needs {shape}",
                then="pass bounds that mirror those that expose_clips returned",
            )


class _Bounded:
    """Action: run the clip with its bounds read from the params."""

    def __init__(self, clips: tuple[Clip, ...]) -> None:
        self.clips = clips
        self.feeds = tuple(clip.path for clip in clips)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        new = list(operands)
        for clip in self.clips:
            new[clip.bound] = _spread(feed[clip.path], clip, jnp.asarray(operands[clip.clipped]))
        if op.primitive == "select_n":
            (clip,) = self.clips
            nearer = lax.min if clip.side == "max" else lax.max
            return [nearer(new[clip.clipped], new[clip.bound])], {}
        if op.primitive == "clamp":
            new = [jnp.broadcast_to(side, jnp.shape(new[1])) for side in new]
        return op.bind(*new), {}


def _spread(bounds: Any, clip: Clip, x: Any) -> Any:
    """The bounds as an array like the activation."""
    shape = [size if axis in clip.axes else 1 for axis, size in enumerate(x.shape)]
    return jnp.broadcast_to(jnp.asarray(bounds).astype(x.dtype).reshape(shape), x.shape)
