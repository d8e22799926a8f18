"""One link of a declared chain -> one group.

    producers --(norm, activation)--> consumers

The producers' kernels fix the shape of the scale; consumers divide by it, everything that adds to
the channels or bounds them is multiplied. The invariant: a link becomes a whole group or an error
that names both layers, their axes and shapes, and what may have been meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flaxcle.errors import SpecError
from flaxcle.spec.elements import Layer, Leaf
from flaxcle.spec.layers import (
    Reading,
    Shape,
    Spread,
    carries,
    in_axis,
    makes,
    reads,
    site,
    spread_of,
)
from flaxcle.spec.table import Group

_LONG = 40
Row = tuple[Leaf, Reading, int]
Turned = dict[str, bool]


class Link(NamedTuple):
    """What shares one scale: the producers, what lies between, the consumers."""

    producers: tuple[Layer, ...]
    between: tuple[Layer, ...]
    consumers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """`'Conv_0 + 2 more -> Conv_1'`."""
        return f"{_joined(self.producers)} -> {_joined(self.consumers)}"

    @property
    def spread(self) -> Spread:
        """Where the channels stand when all the producers' outputs are flattened."""
        kinds: set[Spread] = {spread_of(layer) for layer in self.producers if layer.source}
        return kinds.pop() if len(kinds) == 1 else "none"


class Made(NamedTuple):
    """A producer, the leaf that makes its channels and the ways to read that leaf."""

    layer: Layer
    leaf: Leaf
    readings: tuple[Reading, ...]

    def of_size(self, shape: Shape) -> Reading | None:
        """The first reading with so many channels."""
        size = math.prod(shape)
        return next((reading for reading in self.readings if reading.ids.size == size), None)


def group_of(link: Link, turned: Turned) -> Group:
    """The group of a link, for the first shape of its scale that fits all kernels.

    Args:
        link: layers in the order of the data flow.
        turned: which kernels were found to be (..., out, in), or not; extended here, so that one
            kernel is read the same way in all its groups.

    Raises:
        SpecError: the sizes don't fit.
    """
    made = [
        Made(layer, layer.source, tuple(makes(layer, _known(layer, turned))))
        for layer in link.producers
        if layer.source
    ]
    shapes = list(dict.fromkeys(reading.ids.shape for reading in made[0].readings))
    for shape in shapes:
        rows = _kernel_rows(link, made, shape, turned)
        if rows:
            turned |= {leaf.path: row.turned for leaf, row, _ in rows if row.turned is not None}
            rows += _vector_rows(link, shape)
            sites = dict.fromkeys(site(leaf, row, shape, power) for leaf, row, power in rows)
            return Group(link.name, shape, tuple(sorted(sites, key=lambda row: row.power < 0)))
    raise _misfit(link, made, shapes[0], turned)


def _known(layer: Layer, turned: Mapping[str, bool]) -> bool | None:
    return turned.get(layer.kernel.path) if layer.kernel else None


def _kernel_rows(
    link: Link, made: Sequence[Made], shape: Shape, turned: Mapping[str, bool]
) -> list[Row]:
    """Producers and consumers for this shape of the scale; none when one does not fit."""
    rows: list[Row] = []
    for producer in made:
        reading = producer.of_size(shape)
        if reading is None:
            return []
        rows.append((producer.leaf, reading, 1))
    for layer in link.consumers:
        reading = reads(layer, shape, link.spread, _known(layer, turned))
        if reading is None:
            return []
        rows.append((layer.weights, reading, -1))
    return rows


def _vector_rows(link: Link, shape: Shape) -> Iterator[Row]:
    """Biases, running means and clip bounds: all are multiplied."""
    for layer in link.producers:
        for leaf in (*layer.shifts, *layer.bounds):
            yield leaf, carries(leaf, shape, (), link.spread), 1
    for layer in link.between:
        mean = (layer.mean,) if layer.mean else ()
        for leaf in (*mean, *layer.shifts, *layer.bounds):
            yield leaf, carries(leaf, shape, layer.options.get("at", ()), link.spread), 1


def _misfit(
    link: Link, made: Sequence[Made], shape: Shape, turned: Mapping[str, bool]
) -> SpecError:
    """The error for the first two layers whose sizes differ."""
    first = made[0]
    origin = f"{first.leaf} makes {math.prod(shape)} on axes {first.readings[0].axes}"
    for other in made:
        if other.of_size(shape) is None:
            reading = other.readings[0]
            return SpecError(
                f"{first.layer.name!r} and {other.layer.name!r} can't share one scale",
                where=f"{origin}, {other.leaf} makes {reading.ids.size} on axes {reading.axes}",
                then="list only layers of the same width in a tuple, or name the axes that make "
                f"the channels: '{other.layer.name}[out=-2]'",
            )
    layer = next(
        layer
        for layer in link.consumers
        if reads(layer, shape, link.spread, _known(layer, turned)) is None
    )
    axes = layer.options.get("in", (in_axis(layer),))
    width = math.prod(layer.weights.shape[axis] for axis in axes)
    return SpecError(
        f"{layer.name!r} can't read the channels of {first.layer.name!r}",
        where=f"{origin}, {layer.weights} reads {width} on axes {axes}",
        then=_advice(layer.name, width, math.prod(shape)),
    )


def _advice(name: str, width: int, size: int) -> str:
    axes = f"name the axes of a kernel that is laid out otherwise: '{name}[in=-1]'"
    if width <= size:
        return f"list the layers in the order of the data flow, or {axes}"
    return (
        f"if it reads a concat, say where these channels start: '{name}[at={width - size}]'; if it "
        f"reads a flatten, its in-axis must be a multiple of {size} and the producer a convolution "
        f"(else write every start: '{name}[at=0+{size}]'); or {axes}"
    )


def _joined(layers: Sequence[Layer]) -> str:
    names = [layer.name for layer in layers if layer.source]
    full = " + ".join(names)
    return full if len(full) <= _LONG or len(names) == 1 else f"{names[0]} + {len(names) - 1} more"
