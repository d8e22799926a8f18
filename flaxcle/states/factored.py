"""Second moments that are kept as means over two axes, as Adafactor does.

    v ~ v_row * v_col / mean(v_row)        v_row, v_col: means of v over its largest axes

optax keeps `v_row`, `v_col` and `v` for every param, and fills those that it does not use with one
zero. The invariant: such placeholders are told by the shapes of all three, not by their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxcle.apply import Mean
from flaxcle.paths import named_leaves, shape_of
from flaxcle.states.leaf import StateLeaf

Shape = tuple[int, ...]
_OTHER = {"v_row": "v_col", "v_col": "v_row"}
PLACEHOLDER = "a placeholder"


def whole_shapes(state: Any) -> Mapping[str, Shape]:
    """The shapes of the unfactored moments, by the names of the params."""
    return {name: shape_of(leaf) for name, leaf in named_leaves(state.v).items()}


def factored_leaf(row: StateLeaf, part: str, leaf: Any, shape: Shape, whole: Shape) -> StateLeaf:
    """The row of a leaf of `v_row`, `v_col` or `v`, for a param of `shape`.

    Args:
        row: what it is if it isn't a mean.
        part: the name of the field.
        leaf: its value.
        shape: of the param.
        whole: of the param's leaf in `v`.
    """
    if (part == "v") != (whole == shape):
        return row._replace(exponent=0, why=PLACEHOLDER)
    if part == "v":
        return row
    second, largest = (int(axis) for axis in np.argsort(shape)[-2:])
    axes = {"v_row": largest, "v_col": second}
    own = axes[part]
    if shape_of(leaf) != shape[:own] + shape[own + 1 :]:
        return row._replace(exponent=None, why=f"it is no mean over axis {own} of {shape}")
    other = _OTHER[part]
    name = other.join(row.path.rsplit(part, 1))
    return row._replace(mean=Mean(shape, own, name, axes[other]))
