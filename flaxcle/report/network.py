"""The network as a graph: what reads or makes quantized tensors, in program order.

Nodes are inputs, contractions, residual adds and outputs; everything between them rides on the
edges. The invariant: an edge leads from an earlier node to a later one, also out of and into loops
and branches; what a loop carries to its next turn has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flaxcle.jaxpr import Op, Program, Value
from flaxcle.quantize.plan import Plan, Quantizer
from flaxcle.report.data import Node


def read_network(program: Program, plan: Plan) -> tuple[Node, ...]:
    """The nodes of a traced function, from its inputs to its outputs."""
    return _Reader(program, plan).nodes()


class _Reader:
    def __init__(self, program: Program, plan: Plan) -> None:
        self.program, self.plan, self.flow = program, plan, plan.flow
        self.found: list[Node] = []
        self.maker: dict[int, int] = {}
        self.sources: dict[int, list[Value]] = {}

    def nodes(self) -> tuple[Node, ...]:
        """All nodes; the values that they make are numbered on the way."""
        for k, value in enumerate(self.program.inputs):
            self._add(Node(f"input_{k}", "input", times(value.shape)), [value])
        for op in self.flow.ops:
            self._remember(op)
            if op in self.plan.at:
                self._add(self._inner(op, self.plan.at[op]), op.outputs)
        for k, value in enumerate(self.program.graph.outputs):
            inputs = self._reached([value])
            self._add(Node(f"output_{k}", "output", times(value.shape), inputs), ())
        return tuple(self.found)

    def _add(self, node: Node, outputs: Sequence[Value]) -> None:
        self.maker |= {id(value): len(self.found) for value in outputs}
        self.found.append(node)

    def _inner(self, op: Op, quantizers: dict[int, Quantizer]) -> Node:
        inputs = self._reached(op.inputs)
        weight = next((k for k, quantizer in quantizers.items() if quantizer.weight), None)
        if weight is None:
            kind = "add" if op in self.flow.residual else "product"
            read = " and ".join(self.found[k].layer for k in inputs)
            return Node(self.plan.layers[op], kind, f"of {read}", inputs, op.source)
        quantizer, fact = quantizers[weight], self.flow[op.inputs[weight]]
        kind, detail = _described(op, weight, quantizer)
        axes = [fact.view[k] for k in quantizer.channel_axes if k < len(fact.view)]
        outs = tuple(axis for axis in axes if axis is not None)
        return Node(quantizer.layer, kind, detail, inputs, op.source, fact.leaf or "", outs)

    def _remember(self, op: Op) -> None:
        """Where the outputs of lookups, loops and branches, and what flows inside, come from."""
        graphs = () if op.primitive == "while" else op.bodies
        operands = op.inputs[1:] if op.primitive == "cond" else op.inputs
        for k, value in enumerate(op.outputs):
            inner = [graph.outputs[k] for graph in graphs]
            self.sources.setdefault(id(value), inner or list(op.inputs))
        for graph in graphs:
            for inside, outside in zip(graph.inputs, operands, strict=True):
                self.sources[id(inside)] = [outside]

    def _reached(self, values: Iterable[Value]) -> tuple[int, ...]:
        """The nodes whose outputs flow into these values."""
        todo = [origin for value in values for origin in self.flow[value].origins]
        found: set[int] = set()
        seen: set[int] = set()
        while todo:
            origin = todo.pop()
            if origin in seen:
                continue
            seen.add(origin)
            if origin in self.maker:
                found.add(self.maker[origin])
            else:
                before = self.sources.get(origin, [])
                todo += [one for value in before for one in self.flow[value].origins]
        return tuple(sorted(found))


def _described(op: Op, weight: int, quantizer: Quantizer) -> tuple[str, str]:
    """What kind of layer it is, and its sizes: 'depthwise', '3\u00d73, 96 channels'."""
    shape = op.inputs[weight].shape
    if op.primitive != "conv_general_dilated":
        outs = [shape[k] for k in quantizer.channel_axes]
        ins = [n for k, n in enumerate(shape) if k not in quantizer.channel_axes]
        return "dense", f"{times(ins)} \u2192 {times(outs)}"
    out, into, *window = op.params["dimension_numbers"].rhs_spec
    groups = op.params["feature_group_count"]
    size, stride = times([shape[k] for k in window]), times(op.params["window_strides"])
    step = "" if set(op.params["window_strides"]) == {1} else f", stride {stride}"
    if groups > 1 and shape[into] == 1:
        return "depthwise", f"{size}, {shape[out]} channels{step}"
    parts = f" in {groups} groups" if groups > 1 else ""
    return "convolution", f"{size}, {shape[into] * groups} \u2192 {shape[out]}{parts}{step}"


def times(sizes: Iterable[int]) -> str:
    """Sizes as a person writes them: '3\u00d73'."""
    return "\u00d7".join(map(str, sizes)) or "1"
