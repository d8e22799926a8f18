"""`shard_map`: every device has scales of its own, and collectives tie them.

The body is interpreted in lockstep, each operation once for each device, on that device's part of
the arguments. So channels that are spread over devices keep a scale each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flaxcle.jaxpr import Op, Value
from flaxcle.rules import scale
from flaxcle.rules.box import Irregular, Shape
from flaxcle.rules.context import Context, Rule, Why, literal, shape_of
from flaxcle.rules.layout import join
from flaxcle.rules.scale import Scale

MAX_DEVICES = 256
SUMS = ("psum", "psum2", "psum_invariant", "pmax", "pmin")
GATHERS = ("all_gather", "all_gather_invariant")
SAME_EVERYWHERE = ("pvary", "pbroadcast", "pcast")

Place = tuple[int, ...]
Shards = dict[Place, Scale]


class Devices:
    """The places of a mesh along the axes that the map splits."""

    def __init__(self, op: Op) -> None:
        """Reads the mesh from a `shard_map`."""
        sizes: Mapping[str, int] = op.params["mesh"].shape
        manual = op.params.get("manual_axes", op.params.get("newly_manual_axes", sizes))
        self.sizes = {name: size for name, size in sizes.items() if name in manual}

    @property
    def places(self) -> Iterator[Place]:
        """Every device."""
        return itertools.product(*map(range, self.sizes.values()))

    def number(self, place: Place, names: Sequence[str]) -> int:
        """The rank of a device among those that differ along the named axes, the first slowest."""
        at, rank = dict(zip(self.sizes, place, strict=True)), 0
        for name in names:
            rank = rank * self.sizes[name] + at[name]
        return rank

    def peers(self, place: Place, names: Sequence[str]) -> list[Place]:
        """The devices that differ from one along the named axes only, by rank."""
        ranges = [
            range(size) if name in names else (at,)
            for (name, size), at in zip(self.sizes.items(), place, strict=True)
        ]
        return sorted(itertools.product(*ranges), key=lambda peer: self.number(peer, names))

    def count(self, names: Sequence[str]) -> int:
        """How many devices the named axes have."""
        count = 1
        for name in names:
            count *= self.sizes[name]
        return count


def shard_map(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Splits the arguments, interprets the body for all devices, joins the results."""
    devices, (body,) = Devices(op), op.bodies
    if devices.count(tuple(devices.sizes)) > MAX_DEVICES:
        raise Irregular
    env: dict[int, Shards] = {}
    for value, arg, outer, spec in zip(
        body.inputs, args, op.inputs, op.params["in_specs"], strict=True
    ):
        names = _names(spec, len(outer.shape), devices)
        env[id(value)] = {p: _part(arg, outer, names, devices, p) for p in devices.places}
    for inner in body.flat:
        _step(inner, env, devices, context)
    return [
        _joined(_read(value, env, devices, context), outer, spec, devices, op, context)
        for value, outer, spec in zip(body.outputs, op.outputs, op.params["out_specs"], strict=True)
    ]


def _names(spec: Any, rank: int, devices: Devices) -> list[tuple[str, ...]]:
    """The mesh axes that split each axis of an array."""
    entries = [*spec, *[None] * (rank - len(spec))]
    return [tuple(name for name in _entry(e) if name in devices.sizes) for e in entries]


def _entry(names: Any) -> tuple[str, ...]:
    """One mesh axis, several, or none."""
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _part(
    arg: Scale, value: Value, names: list[tuple[str, ...]], devices: Devices, place: Place
) -> Scale:
    terms, shape = arg.terms, shape_of(value)
    for axis, own in enumerate(names):
        size = shape[axis] // devices.count(own)
        start = devices.number(place, own) * size
        terms = scale.window(terms, axis, start, start + size) if own else terms
    return Scale(terms, arg.wild)


def _read(value: Value, env: Mapping[int, Shards], devices: Devices, context: Context) -> Shards:
    if value.known:
        return dict.fromkeys(devices.places, literal(value, context))
    return env[id(value)]


def _step(op: Op, env: dict[int, Shards], devices: Devices, context: Context) -> None:
    operands = [_read(value, env, devices, context) for value in op.inputs]
    collective = COLLECTIVES.get(op.primitive)
    if collective is not None and op.params.get("axis_index_groups") is None:
        found = [
            collective(op, shards, shape_of(value), devices, context)
            for shards, value in zip(operands, op.inputs, strict=True)
        ]
    else:
        steps = {p: context.step(op, [shards[p] for shards in operands]) for p in devices.places}
        found = [{p: steps[p][k] for p in steps} for k in range(len(op.outputs))]
    env.update({id(value): shards for value, shards in zip(op.outputs, found, strict=True)})


def _reduced(op: Op, shards: Shards, shape: Shape, devices: Devices, context: Context) -> Shards:
    """A sum or extremum over devices: one scale, which passes."""
    names = [name for name in op.params["axes"] if name in devices.sizes]
    out: Shards = {}
    for place in devices.places:
        peers = devices.peers(place, names)
        if place == peers[0]:
            common = context.same([shards[peer] for peer in peers], shape, Why("along", op))
            out.update(dict.fromkeys(peers, common))
    return out


def _gathered(op: Op, shards: Shards, shape: Shape, devices: Devices, context: Context) -> Shards:
    """The parts of all devices side by side, along an axis or along a new one."""
    names = _entry(op.params["axis_name"])
    axis, whole = op.params["all_gather_dimension"], shape_of(op.outputs[0])
    out: Shards = {}
    for place in devices.places:
        parts = [shards[peer] for peer in devices.peers(place, names)]
        if not op.params["tiled"]:
            parts = [part.keep(scale.insert(part.terms, axis, 1)) for part in parts]
        out[place] = join(parts, [whole[axis] // len(parts)] * len(parts), whole, axis, context)
    return out


def _passed(op: Op, shards: Shards, shape: Shape, devices: Devices, context: Context) -> Shards:
    """What a device gets from another; where nothing arrives there is zero."""
    names = _entry(op.params["axis_name"])
    source = {target: start for start, target in op.params["perm"]}
    out: Shards = {}
    for place in devices.places:
        peers = devices.peers(place, names)
        start = source.get(devices.number(place, names))
        out[place] = scale.WILD if start is None else shards[peers[start]]
    return out


def _kept(op: Op, shards: Shards, shape: Shape, devices: Devices, context: Context) -> Shards:
    return shards


def _joined(
    shards: Shards, outer: Value, spec: Any, devices: Devices, op: Op, context: Context
) -> Scale:
    """The result as one array; devices that hold copies agree."""
    shape = shape_of(outer)
    names = _names(spec, len(shape), devices)
    local = [size // devices.count(own) for size, own in zip(shape, names, strict=True)]
    split = [name for own in names for name in own]
    copies = [name for name in devices.sizes if name not in split]
    parts: Shards = {}
    for place in devices.places:
        peers = devices.peers(place, copies)
        if place == peers[0]:
            why = Why("along", op)
            parts[place] = context.same([shards[peer] for peer in peers], tuple(local), why)
    for axis, own in enumerate(names):
        local[axis] = shape[axis]
        for place in [p for p in parts if devices.number(p, own) == 0] if own else ():
            row = [parts.pop(peer) for peer in devices.peers(place, own)]
            parts[place] = join(
                row, [shape[axis] // len(row)] * len(row), tuple(local), axis, context
            )
    (whole,) = parts.values()
    return whole


COLLECTIVES = {
    **dict.fromkeys(SUMS, _reduced),
    **dict.fromkeys(GATHERS, _gathered),
    **dict.fromkeys(SAME_EVERYWHERE, _kept),
    "ppermute": _passed,
}
RULES: dict[str, Rule] = {"shard_map": shard_map}
