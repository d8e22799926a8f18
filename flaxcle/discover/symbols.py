"""Symbols of the leaves: a block of consecutive numbers for every factor of every leaf.

log scale(leaf)[p] = sum over the leaf's blocks of symbol[base + (place of p in the block)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flaxcle.discover.roles import Role
from flaxcle.jaxpr import Program
from flaxcle.paths import is_float
from flaxcle.rules import box
from flaxcle.rules.box import Axes, Shape
from flaxcle.rules.context import Context
from flaxcle.rules.scale import PLAIN, Gauge, Scale, Term


class Block(NamedTuple):
    """The symbols of one factor of a leaf, and how they lie on the leaf's axes."""

    leaf: str
    shape: Shape
    role: Role
    base: int
    size: int
    axes: Axes

    @property
    def is_kernel(self) -> bool:
        """Whether the leaf is summed over or looked up, not used element by element."""
        return self.role.kind != "joint"

    @property
    def extent(self) -> Shape:
        """The leaf's shape along the block's axes."""
        return tuple(self.shape[axis] for axis in self.role.axes)

    def places(self, numbers: np.ndarray) -> dict[int, np.ndarray]:
        """A position of the leaf for each symbol of the block: axis -> coordinates."""
        if self.role.kind == "grouped":
            inner, outer = self.role.axes
            group, channel = np.divmod(numbers, self.shape[inner])
            return {inner: channel, outer: group * (self.shape[outer] // self.role.groups)}
        found = np.unravel_index(numbers, self.extent) if self.extent else ()
        return dict(zip(self.role.axes, found, strict=True))

    def symbols(self, places: Mapping[int, np.ndarray]) -> np.ndarray:
        """The block's symbol at each position; axes that are left out stand at zero."""
        at = [places.get(axis, np.zeros((), np.int64)) for axis in self.role.axes]
        count = max((len(x) for x in places.values()), default=1)
        if self.role.kind == "grouped":
            channel, out = at
            number = out // (self.shape[self.role.axes[1]] // self.role.groups)
            number = number * self.shape[self.role.axes[0]] + channel
        else:
            number = np.zeros((), np.int64)
            for size, x in zip(self.extent, at, strict=True):
                number = number * size + x
        return np.broadcast_to(number, (count,))


def leaf_scales(
    program: Program, roles: Mapping[str, tuple[Role, ...]], context: Context
) -> tuple[dict[str, Scale], list[Block]]:
    """Hands out symbols to all float leaves that are used, in the order of their use."""
    scales = dict.fromkeys(program.params, PLAIN)
    blocks: list[Block] = []
    for path, found in roles.items():
        value = program.params[path]
        if not is_float(value) or 0 in value.shape:
            continue
        shape = tuple(int(n) for n in value.shape)
        own = [_block(path, shape, role, context) for role in found or [Role("joint", ())]]
        blocks += own
        terms = tuple(Term(1, block.base, block.axes) for block in own)
        scales[path] = Scale(terms, gauge=Gauge(path) if len(own) > 1 else None)
    return scales, blocks


def _block(path: str, shape: Shape, role: Role, context: Context) -> Block:
    base = context.symbols
    if role.kind == "grouped":
        axes, size = _grouped(shape, role)
    else:
        axes = box.row_major(shape, role.axes)
        size = math.prod(shape[axis] for axis in role.axes)
    context.symbols += size
    return Block(path, shape, role, base, size, axes)


def _grouped(shape: Shape, role: Role) -> tuple[Axes, int]:
    """The in-factor of a grouped kernel: input channel = group * in + i."""
    inner, outer = role.axes
    ins, outs = shape[inner], shape[outer] // role.groups
    axes = [box.whole(size) for size in shape]
    axes[inner] = box.whole(ins, 1)
    axes[outer] = box.normal(0, (box.Dim(role.groups, outs, ins), box.Dim(outs, 1, 0)))
    return tuple(axes), ins * role.groups
