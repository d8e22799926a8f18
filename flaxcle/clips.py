"""Clips with a bound per channel: ReLU6 stays exact while the channels in front of it are rescaled.

    min(x, 6)  ->  min(x, m),   m a leaf of shape (channels,), at first 6 everywhere

A scale s on the producer turns m into 6 s, and the clip is exactly the old one. The invariant:
before any rescaling the new function gives bit for bit what the old one gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcle.errors import TraceError
from flaxcle.jaxpr import Op, Program, Value, trace
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import VIEWS
from flaxcle.paths import PyTree, parent, strip_collection
from flaxcle.rules.constants import Constants

COLLECTION = "clips"
_SIDES = {"min": ((1, 0, "max"), (0, 1, "max")), "max": ((1, 0, "min"), (0, 1, "min"))}
_SIDES["clamp"] = ((0, 1, "min"), (2, 1, "max"))


@dataclass(frozen=True)
class _Clip:
    """One constant bound: operand `bound` of an op that clips operand `clipped` along `axis`."""

    path: str
    bound: int
    clipped: int
    axis: int
    value: float
    shape: tuple[int, ...]


def expose_clips(
    fn: Callable[..., Any], params: PyTree, *inputs: Any
) -> tuple[Callable[..., Any], PyTree]:
    """Gives every constant clip a leaf of bounds, so that scales pass through it exactly.

    `min(x, 6)` becomes `min(x, m)` with one m per channel: `relu6(x) = min(max(x, 0), m)`. A group
    that passes it multiplies m too, so that `min(s x, s 6) = s min(x, 6)`. Upper and lower bounds
    that are finite and not zero are exposed, of `min`, `max`, `clip` and `clamp` on activations
    with a channel axis. The model code stays as it is: the new function re-evaluates it.

    The leaves are `clips/<layer>/max` (and `/min`), named after the convolution or matrix product
    whose result is clipped, of shape (channels,); (iterations, channels) inside `scan`.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params. A mapping with a `"params"` collection gets a collection `"clips"`
            beside it, anything else is wrapped: `{"params": params, "clips": ...}`.
        inputs: example inputs or their ShapeDtypeStructs; batch sizes may change later.

    Returns:
        The new function and its params. A function without such a clip comes back as it is.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu6(x @ p["params"]["dense"]["kernel"])
        >>> params = {"params": {"dense": {"kernel": jnp.ones((2, 3))}}}
        >>> fn2, params2 = fc.expose_clips(fn, params, jnp.ones((1, 2)))
        >>> params2["clips"]["dense"]["max"].tolist()
        [6.0, 6.0, 6.0]

    Source: the exact alternative to dropping ReLU6 (Nagel et al. 2019, arXiv:1906.04721, 5.1.1).
    """
    found = _find_clips(trace(fn, params, *inputs))
    if not found:
        return fn, params
    leaves = {}
    for op, clips in found.items():
        for clip in clips:
            dtype = op.inputs[clip.clipped].dtype
            leaves[tuple(clip.path.split("/"))] = jnp.full(clip.shape, clip.value, dtype)
    return _exposed(fn, _has_collections(params)), _joined(params, unflatten_dict(leaves))


def _has_collections(params: PyTree) -> bool:
    return isinstance(params, Mapping) and "params" in params


def _joined(params: PyTree, clips: dict[str, Any]) -> PyTree:
    if not _has_collections(params):
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
        found = _find_clips(program)
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

    def __init__(self, clips: tuple[_Clip, ...]) -> None:
        self.clips = clips
        self.feeds = tuple(clip.path for clip in clips)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        new = list(operands)
        for clip in self.clips:
            x = jnp.asarray(operands[clip.clipped])
            along = [1] * x.ndim
            along[clip.axis] = -1
            bound = jnp.asarray(feed[clip.path]).astype(x.dtype).reshape(along)
            new[clip.bound] = jnp.broadcast_to(bound, x.shape)
        if op.primitive == "clamp":
            new = [jnp.broadcast_to(side, jnp.shape(new[1])) for side in new]
        return op.bind(*new), {}


def _find_clips(program: Program) -> dict[Op, tuple[_Clip, ...]]:
    """The clips of the function by op, with names that depend on the function only."""
    finder = _Finder()
    for frame in frames(program):
        finder.visit(frame)
    return finder.found


class _Finder:
    def __init__(self) -> None:
        self.found: dict[Op, tuple[_Clip, ...]] = {}
        self.constants = Constants()
        self.layers: dict[int, str] = {}
        self.axes: dict[int, int] = {}
        self.names: set[str] = set()

    def visit(self, frame: Frame) -> None:
        for inner, outer, sliced in frame.passed:
            if not sliced:
                self.constants.bind(inner, outer)
        for op in frame.graph.flat:
            self.constants.learn(op)
            if not any(frame.is_dynamic(value) for value in op.inputs):
                continue
            if op.primitive in _SIDES:
                self._clip(frame, op)
            self._follow(frame, op)

    def _follow(self, frame: Frame, op: Op) -> None:
        """Carries the layer behind an activation, and its channel axis, to the op's results."""
        behind = [self.layers[id(v)] for v in op.inputs if id(v) in self.layers]
        layer = _layer(frame, op) if op.primitive in CONTRACTIONS else None
        for out in op.outputs:
            if layer or behind:
                self.layers[id(out)] = layer or behind[-1]
            if op.primitive == "conv_general_dilated":
                self.axes[id(out)] = op.params["dimension_numbers"].out_spec[1]
            for value in op.inputs:
                if id(value) in self.axes and value.shape == out.shape:
                    self.axes.setdefault(id(out), self.axes[id(value)])

    def _clip(self, frame: Frame, op: Op) -> None:
        clips = []
        for bound, clipped, side in _SIDES[op.primitive]:
            value, x = self._bound(op.inputs[bound]), op.inputs[clipped]
            if value is not None and frame.is_dynamic(x) and id(x) in self.layers:
                clips.append(self._named(frame, bound, clipped, x, side, value))
        if clips:
            self.found[op] = tuple(clips)

    def _bound(self, value: Value) -> float | None:
        """The constant, when it is one finite number other than zero."""
        array = self.constants.of(value)
        if array is None or not array.size or not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        first = float(array.ravel()[0])
        usable = first != 0 and np.isfinite(first) and bool((array == first).all())
        return first if usable else None

    def _named(
        self, frame: Frame, bound: int, clipped: int, x: Value, side: str, value: float
    ) -> _Clip:
        base = self.layers[id(x)]
        path, count = f"{base}/{side}", 0
        while path in self.names:
            count += 1
            path = f"{base}/{side}_{count}"
        self.names.add(path)
        axis = self.axes.get(id(x), len(x.shape) - 1)
        lead = tuple(scan.params["length"] for scan in frame.scans)
        return _Clip(path, bound, clipped, axis, value, (*lead, x.shape[axis]))


def _layer(frame: Frame, op: Op) -> str:
    """The module whose leaf is the op's weight; the op's scope when there is none."""
    for value in op.inputs[:2]:
        leaf = frame.leaf_behind(value, VIEWS)
        if leaf:
            return strip_collection(parent(leaf.path)) or leaf.path
    return op.scope or op.primitive
