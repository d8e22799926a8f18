"""What equalization does to the weights, layer by layer and group by group, from values alone.

spread = range of the widest channel / range of the median one
dB     = signal to noise ratio of the weights in int8 with one symmetric scale for the tensor
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.compare import sqnr
from flaxcle.paths import PyTree, named_leaves, shape_of, strip_collection
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.spec import Scales, Site, Spec
from flaxcle.tables import Table


def layer_table(before: PyTree, after: PyTree, spec: Spec) -> Table:
    """A row for each kernel that the spec names: range, spread and noise, before and after."""
    sites: dict[str, Site] = {}
    for group in spec.groups:
        for site in (*group.producers, *group.consumers):
            sites.setdefault(site.path, site)
    old, new = named_leaves(before), named_leaves(after)
    rows = [
        (strip_collection(path), shape_of(old[path]), *columns)
        for path, site in sites.items()
        if len(shape_of(old[path])) > 1
        for columns in [_interleaved(_measured(old[path], site), _measured(new[path], site))]
    ]
    names = [f"{name}{when}" for name in ("max |w|", "spread", "dB") for when in ("", " after")]
    return Table(("layer", "shape", *names), tuple(rows))


def group_table(scales: Scales, spec: Spec) -> Table:
    """A row for each group: how many scales, the smallest, the largest, those that stayed at 1."""
    rows = []
    for group in spec.groups:
        linear = np.asarray(scales[group.name], np.float64)
        kept = int(np.sum(linear == 1))
        rows.append((group.name, group.size, float(linear.min()), float(linear.max()), kept))
    return Table(("group", "scales", "smallest", "largest", "at 1"), tuple(rows))


def _interleaved(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[Any]:
    return [value for pair in zip(before, after, strict=True) for value in pair]


def _measured(leaf: Any, site: Site) -> tuple[float | None, ...]:
    """Range, spread and noise of a kernel; `None` where there is no such number."""
    weights, count = np.asarray(leaf, np.float32), len(site.axes)
    rows = np.moveaxis(weights, site.axes, range(count))
    rows = rows.reshape(math.prod(rows.shape[:count]), -1)
    ranges = np.max(np.abs(rows), axis=1)
    median = float(np.median(ranges))
    noises = zip(rows, np.asarray(_in_int8(rows)), strict=True)
    ratios = [sqnr(row, coarse) for row, coarse in noises if row.any()]
    spread = float(np.max(ranges)) / median if median else None
    return float(np.max(ranges)), spread, float(np.mean(ratios)) if ratios else None


@jax.jit
def _in_int8(weights: jax.Array) -> jax.Array:
    return snap(weights, make_grid(jnp.min(weights), jnp.max(weights), 8, symmetric=True))
