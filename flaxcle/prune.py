"""Dead channels: those that never fire, but whose weights set the step of a whole tensor.

A channel contributes at most (row of the producer + what its bias lets through) * column of the
consumers. Where that is nothing beside the other channels, both sides become zero. The decision is
taken at the balanced point, which no rescaling of the network moves: a channel is judged by what it
does, not by how it is scaled at the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.apply import apply_scales
from flaxcle.clips import COLLECTION, expose_clips
from flaxcle.discover import find_spec
from flaxcle.jaxpr import trace
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.paths import PyTree, leaf_name, named_leaves, replace_leaves, shape_of
from flaxcle.rules.constants import Constants
from flaxcle.solve import balance_all
from flaxcle.spec import Group, Site
from flaxcle.spec.table import channels

NEGLIGIBLE = 1e-9
_PASSING = (
    *("min", "convert_element_type", "copy", "reshape", "transpose", "squeeze", "broadcast_in_dim"),
    *("reduce_sum", "reduce_max", "reduce_window_max", "reduce_window_sum", "div", "pad", "rev"),
)

Leaves = Mapping[str, np.ndarray]


def prune_dead_channels(fn: Callable[..., Any], variables: PyTree, *inputs: Any) -> PyTree:
    """Zeroes channels that contribute nothing, whose weights wreck a per-tensor range.

    Training with weight decay leaves channels with rows of 1e-20 and folded depthwise weights of
    90 where the others have 2: they never fire, no balance of ranges reaches them, and the step of
    the tensor is theirs. With r1 the producer's row, r2 the consumers' column at the balanced
    point and b the bias, channel c is zeroed, producer and consumers, where

        (r1[c] + max(b[c], 0)) * r2[c]  <=  1e-9 * max over channels of the same.

    A negative bias counts too unless a ReLU cuts it off. A channel that emits a constant stays.
    Repeated until nothing changes: a zeroed depthwise filter lets its producer go as well. Fold
    BatchNorms first: only what is in the kernels counts.

    Args:
        fn: any function `fn(variables, *inputs)`.
        variables: its params.
        inputs: example inputs or their ShapeDtypeStructs; their values are not used.

    Returns:
        Variables of the same structure and dtypes. The function changes by less than rounding.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> dead = {"a": jnp.array([[1.0, 1e-20]]), "b": jnp.array([[1.0], [9.0]])}
        >>> fc.prune_dead_channels(fn, dead, jnp.ones((1, 1)))["b"].ravel().tolist()
        [1.0, 0.0]
    """
    exposed, params = expose_clips(fn, variables, *inputs)
    spec = find_spec(exposed, params, *inputs)
    single = tuple(group for group in spec.groups if _one_kernel(group, params))
    if not single:
        return variables
    rectified = _rectified(exposed, params, inputs)
    scales = balance_all(params, spec)
    balanced = {
        p: np.asarray(v) for p, v in named_leaves(apply_scales(params, scales, spec)).items()
    }
    masks = _close(single, balanced, rectified)
    wrapped = params is not variables and not _same_names(variables, params)
    found = {path.removeprefix("params/") if wrapped else path: m for path, m in masks.items()}
    old = named_leaves(variables)
    return replace_leaves(
        variables, {path: jnp.where(mask > 0, old[path], 0) for path, mask in found.items()}
    )


def _same_names(variables: PyTree, params: PyTree) -> bool:
    return set(named_leaves(variables)) <= set(named_leaves(params))


def _one_kernel(group: Group, params: PyTree) -> bool:
    """One producer with a kernel, and consumers with one: elsewhere deadness is a joint matter."""
    leaves = named_leaves(params)
    kernels = {s.path for s in group.producers if not _is_vector(s, shape_of(leaves[s.path]))}
    return len(kernels) == 1 and any(
        not _is_vector(site, shape_of(leaves[site.path])) for site in group.consumers
    )


def _is_vector(site: Site, shape: tuple[int, ...]) -> bool:
    """A bias or norm scale; a leaf of higher rank is a kernel, also when it has one input."""
    return len(shape) == len(site.axes)


def _close(
    groups: tuple[Group, ...], leaves: dict[str, np.ndarray], rectified: set[str]
) -> dict[str, np.ndarray]:
    """Masks (1 alive, 0 dead) of the leaves that lose channels, repeated to closure."""
    leaves = dict(leaves)
    masks: dict[str, np.ndarray] = {}
    changed = True
    while changed:
        changed = False
        for group in groups:
            dead = _dead(group, leaves, rectified)
            for site in group.sites if dead.any() else ():
                if site.path.startswith(f"{COLLECTION}/"):
                    continue
                mask = _mask(site, leaves[site.path].shape, dead)
                fresh = leaves[site.path] * mask
                changed |= bool((fresh != leaves[site.path]).any())
                leaves[site.path] = fresh
                masks[site.path] = masks.get(site.path, 1) * mask.astype(fresh.dtype)
    return masks


def _dead(group: Group, leaves: Leaves, rectified: set[str]) -> np.ndarray:
    rows = np.zeros(group.size)
    columns = np.zeros(group.size)
    bias = np.zeros(group.size)
    for site in group.sites:
        leaf = leaves[site.path]
        if not _is_vector(site, leaf.shape):
            side = rows if site.power > 0 else columns
            np.maximum(side, _largest(site, leaf, group.size), out=side)
        elif site.power > 0 and not site.path.startswith(f"{COLLECTION}/"):
            bias += _constant(site, leaf, group.size)
    cut = all(
        s.path in rectified for s in group.consumers if not _is_vector(s, leaves[s.path].shape)
    )
    passed = np.maximum(bias, 0) if cut else np.abs(bias)
    contribution = (rows + passed) * columns
    return contribution <= NEGLIGIBLE * contribution.max(initial=0.0)


def _largest(site: Site, leaf: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros(size)
    rest = tuple(k for k in range(leaf.ndim) if k not in {axis % leaf.ndim for axis in site.axes})
    flat = np.abs(leaf).astype(np.float64).max(axis=rest, initial=0.0).ravel()
    ids = _ids(site, leaf.shape)
    np.maximum.at(out, ids[ids >= 0], flat[ids >= 0])
    return out


def _ids(site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """The channel of each position, in the order in which the axes lie in the leaf."""
    order = np.argsort([axis % len(shape) for axis in site.axes])
    return channels(site, shape).transpose(order).ravel()


def _constant(site: Site, leaf: np.ndarray, size: int) -> np.ndarray:
    """What a vector adds to its channel: a bias, or minus a mean that is subtracted."""
    sign = -1.0 if leaf_name(site.path) == "mean" else 1.0
    out = np.zeros(size)
    ids = _ids(site, leaf.shape)
    np.add.at(out, ids[ids >= 0], sign * leaf.astype(np.float64).ravel()[ids >= 0])
    return out


def _mask(site: Site, shape: tuple[int, ...], dead: np.ndarray) -> np.ndarray:
    axes = sorted(axis % len(shape) for axis in site.axes)
    ids = _ids(site, shape)
    alive = np.where(ids < 0, 1.0, 1.0 - dead[ids])
    return alive.reshape([n if k in axes else 1 for k, n in enumerate(shape)])


def _rectified(fn: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> set[str]:
    """Leaves that multiply an activation which a ReLU has made non-negative, wherever used."""
    used: dict[str, bool] = {}
    constants = Constants()
    for frame in frames(trace(fn, params, *inputs)):
        for op in frame.graph.flat:
            constants.learn(op)
            if op.primitive not in CONTRACTIONS:
                continue
            live = [value for value in op.inputs[:2] if frame.is_dynamic(value)]
            after = len(live) == 1 and _after_relu(frame, live[0], constants)
            for value in op.inputs[:2]:
                leaf = frame.leaf_behind(value, _PASSING)
                if leaf:
                    used[leaf.path] = used.get(leaf.path, True) and after
    return {path for path, after in used.items() if after}


def _after_relu(frame: Frame, value: Any, constants: Constants) -> bool:
    while (maker := frame.makers.get(id(value))) is not None:
        live = [operand for operand in maker.inputs if frame.is_dynamic(operand)]
        if maker.primitive == "max" and len(live) == 1:
            other = next(operand for operand in maker.inputs if operand is not live[0])
            bound = constants.of(other)
            return bound is not None and bool((bound == 0).all())
        if maker.primitive not in _PASSING or len(live) != 1:
            return False
        value = live[0]
    return False
