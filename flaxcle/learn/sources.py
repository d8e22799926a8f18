"""Where quantization noise comes from: every weight and every activation that a quantizer reads.

A source is kept as small as the scales allow: reduced over all axes that neither a scale nor a
step size of its own runs along. The invariant: everything here is static.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flaxcle.bias.adds import find_bias_adds
from flaxcle.jaxpr import Graph, Op, Program
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.learn.exponents import Link, activation_links
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.flow import Fact, Flow
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.rules.context import shape_of
from flaxcle.spec import Spec
from flaxcle.spec.table import channels, normal_axes

Shape = tuple[int, ...]
Axes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """One quantized tensor.

    Attributes:
        name: of its quantizer.
        leaf: path of a weight; empty for an activation.
        loops: number of axes in front that count the turns of loops (activations only).
        axes: the axes of the tensor that stay, ascending, without those of loops.
        shape: of what stays, loops first.
        steps: axes of `shape` along which each position has a step size of its own.
        links: how it moves with the scales, on axes of `shape`.
    """

    name: str
    leaf: str
    loops: int
    axes: Axes
    shape: Shape
    steps: Axes
    links: tuple[Link, ...]


@dataclass(frozen=True, eq=False)
class Sources:
    """All sources of a function.

    Attributes:
        weights: by leaf.
        activations: by name.
        places: where they are read: op and operand.
        corrected: contractions behind which a bias takes the mean error of each channel.
    """

    weights: dict[str, Source]
    activations: dict[str, Source]
    places: dict[Op, dict[int, Quantizer]]
    corrected: frozenset[Op]

    @property
    def all(self) -> tuple[Source, ...]:
        """Weights, then activations."""
        return (*self.weights.values(), *self.activations.values())


def find_sources(program: Program, spec: Spec, config: QuantConfig) -> Sources:
    """The sources of noise of a traced function under `config`."""
    plan = make_plan(program)
    shapes = {path: shape_of(value) for path, value in program.params.items()}
    rows = _leaf_links(spec, shapes)
    weights: dict[str, Source] = {}
    if config.weight_bits is not None:
        for op, operand, fact in plan.weights():
            quantizer, path = plan.at[op][operand], fact.leaf or ""
            if path not in weights:
                own = rows.get(path, ())
                weights[path] = _weight(quantizer, fact, shapes[path], own, config)
    activations = _activations(program, spec, plan) if config.act_bits is not None else {}
    return Sources(weights, activations, plan.at, frozenset(_corrected(plan.flow)))


def _corrected(flow: Flow) -> Iterator[Op]:
    """The contraction in front of each bias, through per-channel arithmetic."""
    makers = {id(value): op for op in flow.ops for value in op.outputs}
    for op in find_bias_adds(flow):
        while op.primitive not in CONTRACTIONS:
            op = makers[next(id(value) for value in op.inputs if flow[value].dynamic)]
        yield op


def offsets(spec: Spec) -> dict[str, int]:
    """The first position of each group in the vector of all scales."""
    sizes = [group.size for group in spec.groups]
    starts = np.cumsum([0, *sizes]).tolist()
    return {group.name: start for group, start in zip(spec.groups, starts, strict=False)}


def _leaf_links(spec: Spec, shapes: Mapping[str, Shape]) -> dict[str, tuple[Link, ...]]:
    out: dict[str, tuple[Link, ...]] = {}
    first = offsets(spec)
    for group in spec.groups:
        for site in group.sites:
            shape = shapes[site.path]
            axes = normal_axes(site, len(shape))
            ids = channels(site, shape).transpose(np.argsort(axes))
            ids = np.where(ids < 0, -1, ids + first[group.name])
            link = Link(tuple(sorted(axes)), ids, float(site.power))
            out[site.path] = (*out.get(site.path, ()), link)
    return out


def _weight(
    quantizer: Quantizer, fact: Fact, shape: Shape, links: tuple[Link, ...], config: QuantConfig
) -> Source:
    stepped = {axis for axis in fact.loops if axis is not None}
    if config.weight_granularity == "per_channel" and fact.view:
        views = (fact.view[k] for k in quantizer.channel_axes)
        stepped |= {axis for axis in views if axis is not None}
    kept = sorted(stepped.union(*(link.axes for link in links)))
    return Source(
        quantizer.name,
        fact.leaf or "",
        0,
        tuple(kept),
        tuple(shape[axis] for axis in kept),
        tuple(kept.index(axis) for axis in sorted(stepped)),
        tuple(link.moved(kept) for link in links),
    )


def _activations(program: Program, spec: Spec, plan: Plan) -> dict[str, Source]:
    loops = dict(_loops(program.graph, ()))
    wanted = {
        op: [k for k, q in operands.items() if not q.weight] for op, operands in plan.at.items()
    }
    out: dict[str, Source] = {}
    for (op, operand), links in activation_links(program, spec, wanted, loops).items():
        quantizer, lengths = plan.at[op][operand], loops[op]
        if quantizer.name not in out:
            shape = (*lengths, *shape_of(op.inputs[operand]))
            out[quantizer.name] = _activation(quantizer.name, shape, len(lengths), links)
    return out


def _activation(name: str, shape: Shape, loops: int, links: tuple[Link, ...]) -> Source:
    turns = range(loops)
    kept = sorted({*turns}.union(*(link.axes for link in links)))
    return Source(
        name,
        "",
        loops,
        tuple(axis - loops for axis in kept if axis >= loops),
        tuple(shape[axis] for axis in kept),
        tuple(turns),
        tuple(link.moved(kept) for link in links),
    )


def _loops(graph: Graph, lengths: Shape) -> Iterator[tuple[Op, Shape]]:
    """Every op with the lengths of the scans around it."""
    for op in graph.flat:
        yield op, lengths
        inner = (*lengths, op.params["length"]) if op.primitive == "scan" else lengths
        for body in op.bodies:
            yield from _loops(body, inner)
