"""Which axes of a layer's leaves make, read and carry channels, from shapes alone.

With channels c = 0..n-1 and a kernel (..., in, out), the consumer's position p reads channel

    Dense, Conv          p                      in axis
    depthwise, times m   p // m                 out axis, in = 1
    grouped              (o // (out/g)) * in + i    in and out axes jointly
    flatten of (..., n)  p % n                  in axis; p // (in/n) when channels come first
    concat at k          p - k

`ids` is that map as an array, -1 where a position reads other channels. The invariant: a layout
that shapes leave open is never guessed where a wrong guess fits silently, but asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from flaxcle.errors import SpecError
from flaxcle.spec.elements import Layer, Leaf
from flaxcle.spec.index import Index
from flaxcle.spec.table import Site

Axes = tuple[int, ...]
Shape = tuple[int, ...]
Spread = Literal["last", "first", "none"]


class Reading(NamedTuple):
    """The axes on which a kernel carries the channels, and the channel of each position there.

    `turned`: the kernel is (..., out, in), as with `transpose_kernel=True`; `None`: not decided.
    """

    axes: Axes
    ids: np.ndarray
    turned: bool | None = None


def site(leaf: Leaf, reading: Reading, shape: Shape, power: int) -> Site:
    """A row; without index where the axes are the group's own."""
    whole = np.arange(math.prod(shape)).reshape(shape)
    plain = reading.ids.shape == shape and np.array_equal(reading.ids, whole)
    index = None if plain else Index.of(reading.ids)
    return Site(leaf.path, reading.axes, Fraction(power), index)


def spread_of(layer: Layer) -> Spread:
    """Where the channels stand when the layer's output is flattened; Dense makes no image."""
    if layer.kernel is not None and len(layer.kernel.shape) == 2 and not layer.embeds:
        return "none"
    return "first" if layer.outer_first else "last"


def makes(layer: Layer, turned: bool | None) -> Iterator[Reading]:
    """The possible readings of a producer's output, the conventional one first."""
    if layer.kernel is None:
        if layer.gain is not None:
            yield _whole(layer.gain, tuple(range(-len(layer.gain.shape), 0)))
    elif "out" in layer.options:
        yield _whole(layer.kernel, layer.options["out"])
    elif layer.embeds:
        yield _whole(layer.kernel, (-1,))
    elif layer.trailing:
        yield _whole(layer.kernel, tuple(range(-layer.trailing, 0)))
    else:
        for turn in _turns(layer, turned):
            yield _whole(layer.kernel, _in_out(layer, turn)[1:])._replace(turned=turn)
        if len(layer.kernel.shape) == 2 and layer.outer_first and not layer.shifts:
            yield _whole(layer.kernel, (1,))  # an embedding that is called 'weight'


def reads(layer: Layer, shape: Shape, spread: Spread, turned: bool | None) -> Reading | None:
    """How a consumer's kernel reads channels of this shape; `None` when it does not fit."""
    kernel = layer.weights
    size, rank = math.prod(shape), len(kernel.shape)
    if "in" in layer.options:
        return _reads_axes(layer, _checked(kernel, layer.options["in"]), size, spread)
    if layer.embeds:
        return _reads_axes(layer, (-1,), size, spread)
    if layer.trailing:
        return _reads_axes(layer, tuple(range(rank - layer.trailing)), size, spread)
    if 1 < len(shape) < rank and kernel.shape[: len(shape)] == shape:
        return _whole(kernel, tuple(range(len(shape))))
    for turn in _turns(layer, turned):
        found = _reads_conv(layer, size, turn) or _reads_flat(layer, size, turn, spread)
        if found:
            return found._replace(turned=turn)
    return _whole(kernel, (0,)) if rank > 2 and kernel.shape[:1] == shape else None


def carries(leaf: Leaf, shape: Shape, at: Axes, spread: Spread) -> Reading:
    """How a vector (bias, norm, clip bound) carries the channels.

    Raises:
        SpecError: its size is another one.
    """
    rank, size, total = len(shape), math.prod(shape), math.prod(leaf.shape)
    if at and len(leaf.shape) == 1:
        return Reading((-1,), _placed(leaf, total, size, at))
    if leaf.shape[-rank:] == shape:
        return _whole(leaf, tuple(range(-rank, 0)))
    if leaf.shape[:rank] == shape and total == size:  # (channels, 1, 1)
        return _whole(leaf, tuple(range(rank)))
    flat = _spread(total, size, spread) if len(leaf.shape) == 1 else None
    if flat is None:
        raise SpecError(
            f"can't scale {size} channels",
            where=str(leaf),
            then="take it out of the chain, or say where the channels start: 'name[at=...]'",
        )
    return Reading((-1,), flat)


def in_axis(layer: Layer) -> int:
    """The conventional in-axis, for messages."""
    return _in_out(layer, False)[0]


def _whole(leaf: Leaf, axes: Axes) -> Reading:
    extent = tuple(leaf.shape[axis] for axis in _checked(leaf, axes))
    return Reading(axes, np.arange(math.prod(extent)).reshape(extent))


def _checked(leaf: Leaf, axes: Axes) -> Axes:
    rank = len(leaf.shape)
    if any(not -rank <= axis < rank for axis in axes) or len({a % rank for a in axes}) < len(axes):
        raise SpecError(
            f"axes {axes} are out of range or named twice",
            where=str(leaf),
            then=f"use different axes from {-rank} to {rank - 1}",
        )
    return axes


def _in_out(layer: Layer, turned: bool) -> Axes:
    """In-axis and out-axis of a kernel with one of each."""
    last = (0, 1) if layer.outer_first else (-1, -2)
    return last if turned else last[::-1]


def _is_transposed(layer: Layer) -> bool:
    return "transpose" in layer.name.lower()


def _width(layer: Layer, turned: bool) -> int:
    """The size of the out-axis."""
    return layer.weights.shape[_in_out(layer, turned)[1]]


def _turns(layer: Layer, turned: bool | None) -> Sequence[bool]:
    """Orientations of the kernel that the bias and what was decided before leave open."""
    kernel = layer.weights
    if len(kernel.shape) < 2:
        raise SpecError("a kernel needs an in-axis and an out-axis", where=str(kernel))
    if turned is not None:
        return (turned,)
    if len(kernel.shape) == 2:
        return (False,)
    if _is_transposed(layer) and _width(layer, False) == _width(layer, True):
        raise SpecError(
            f"{layer.name!r} has a square kernel, so its layout can't be told",
            where=str(kernel),
            then=f"write '{layer.name}[out=-1, in=-2]', or '{layer.name}[out=-2, in=-1]' with "
            "transpose_kernel=True",
        )
    if layer.shifts:
        return (_turn_of_bias(layer, layer.shifts[0].shape),)
    return (False, True) if _width(layer, True) > 1 else (False,)


def _turn_of_bias(layer: Layer, bias: Shape) -> bool:
    """The orientation whose out-axis has the size of the bias."""
    width = max(bias, default=1)
    for turn in (False, True):
        if math.prod(bias) == width == _width(layer, turn):
            return turn
    raise SpecError(
        f"the bias of shape {bias} belongs to no axis of the kernel",
        where=str(layer.weights),
        then="name the kernel's axes, as in 'name[in=0+1, out=0+2]' for layers stacked by "
        "nn.scan or nn.vmap",
    )


def _reads_conv(layer: Layer, size: int, turned: bool) -> Reading | None:
    """Dense and conv kernels: whole, a slice of a concat, depthwise, grouped."""
    kernel, at = layer.weights, layer.options.get("at", ())
    inner, outer = _in_out(layer, turned)
    ins, outs = kernel.shape[inner], kernel.shape[outer]
    conv = len(kernel.shape) > 2 and not turned and not _is_transposed(layer)
    if at:
        axis = outer if conv and ins == 1 else inner
        return Reading((axis,), _placed(kernel, kernel.shape[axis], size, at))
    if ins == size:
        return _whole(kernel, (inner,))
    if conv and ins == 1 and outs % size == 0:
        return Reading((outer,), np.repeat(np.arange(size), outs // size))
    if conv and (ids := _grouped(ins, outs, size)) is not None:
        if len(kernel.shape) == 3 and kernel.shape[0] == size and not layer.shifts:
            raise SpecError(
                f"{layer.name!r} reads {size} channels in groups, or on its first axis",
                where=str(kernel),
                then=f"write '{layer.name}[in=-2+-1]' for a grouped convolution, "
                f"'{layer.name}[in=0]' for a DenseGeneral",
            )
        return Reading((inner, outer), ids)
    return None


def _reads_flat(layer: Layer, size: int, turned: bool, spread: Spread) -> Reading | None:
    kernel = layer.weights
    inner = _in_out(layer, turned)[0]
    flat = _spread(kernel.shape[inner], size, spread) if len(kernel.shape) == 2 else None
    return None if flat is None else Reading((inner,), flat)


def _reads_axes(layer: Layer, axes: Axes, size: int, spread: Spread) -> Reading | None:
    """The same on axes that are known."""
    kernel, at = layer.weights, layer.options.get("at", ())
    extent = tuple(kernel.shape[axis] for axis in axes)
    normal = tuple(axis % len(kernel.shape) for axis in axes)
    inner, outer = (axis % len(kernel.shape) for axis in _in_out(layer, False))
    if at and len(axes) == 1:
        return Reading(axes, _placed(kernel, extent[0], size, at))
    if len(kernel.shape) > 2 and normal == (inner, outer):
        ids = _grouped(extent[0], extent[1], size)
    elif math.prod(extent) == size:
        ids = np.arange(size).reshape(extent)
    elif normal == (outer,) and kernel.shape[inner] == 1 and extent[0] % size == 0:
        ids = np.repeat(np.arange(size), extent[0] // size)
    else:
        ids = _spread(extent[0], size, spread) if len(kernel.shape) == 2 else None
    return None if ids is None else Reading(axes, ids)


def _grouped(ins: int, outs: int, size: int) -> np.ndarray | None:
    """The channel that each (in, out) position of a grouped convolution reads."""
    groups, rest = divmod(size, ins)
    if rest or groups == 0 or outs % groups:
        return None
    group = np.arange(outs) // (outs // groups)
    return group[None, :] * ins + np.arange(ins)[:, None]


def _spread(length: int, size: int, spread: Spread) -> np.ndarray | None:
    """The channels of a flattened image, or of a vector of the same size."""
    if length != size and (length % size or spread == "none"):
        return None
    channels, copies = np.arange(size), length // size
    return np.repeat(channels, copies) if spread == "first" else np.tile(channels, copies)


def _placed(leaf: Leaf, length: int, size: int, starts: Axes) -> np.ndarray:
    """The channels at these places of a concat."""
    ids = np.full(length, -1)
    for start in starts:
        if start < 0 or start + size > length or (ids[start : start + size] >= 0).any():
            raise SpecError(
                f"{size} channels don't fit at position {start} of an axis of size {length}",
                where=str(leaf),
                then="count the channels that stand before them in the concat",
            )
        ids[start : start + size] = np.arange(size)
    return ids
