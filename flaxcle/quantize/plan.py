"""Where the quantizers sit: exactly where an int8 accelerator has them.

Operands of every convolution and matrix product, both operands of residual adds, the network's
inputs and outputs. Not on biases, not between a layer and its fused bias and activation, not on
sums that stay within one tensor (in a gelu, a norm, a softmax). A difference of two tensors is a
residual add with a sign. The invariant: names depend on the function only, not on batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from flaxcle.jaxpr import Op, Program, Value
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.paths import leaf_name, parent, strip_collection
from flaxcle.quantize.flow import Fact, Flow, follow

_KERNELS = ("kernel", "embedding", "weight", "w")


@dataclass(frozen=True)
class Quantizer:
    """One quantizer.

    Attributes:
        name: unique, the key of the calibration.
        layer: what a person calls the place.
        weight: whether it is a weight (its range is its own) or an activation (calibrated).
        channel_axes: the axes of a weight that have a scale of their own per channel.
    """

    name: str
    layer: str
    weight: bool = False
    channel_axes: tuple[int, ...] = ()


@dataclass
class Plan:
    """Quantizers by op and operand, and those of the network's inputs and outputs.

    `layers` has the name of each op that holds quantizers; a quantizer that several ops share has
    that of the first.
    """

    flow: Flow
    at: dict[Op, dict[int, Quantizer]] = field(default_factory=dict)
    layers: dict[Op, str] = field(default_factory=dict)
    inputs: list[Quantizer | None] = field(default_factory=list)
    outputs: list[Quantizer | None] = field(default_factory=list)

    def weights(self) -> Iterator[tuple[Op, int, Fact]]:
        """The weight operands that are layouts of a leaf: op, operand, and what is known of it."""
        for op, operands in self.at.items():
            for operand, quantizer in operands.items():
                fact = self.flow[op.inputs[operand]]
                if quantizer.weight and fact.leaf:
                    yield op, operand, fact

    def quantizers(self) -> dict[str, Quantizer]:
        """All quantizers by name."""
        inner = [q for operands in self.at.values() for q in operands.values()]
        every = [*self.inputs, *inner, *self.outputs]
        return {q.name: q for q in every if q is not None}

    def activations(self) -> dict[str, Quantizer]:
        """All activation quantizers by name."""
        return {name: q for name, q in self.quantizers().items() if not q.weight}


def make_plan(program: Program) -> Plan:
    """Decides for a traced function where its quantizers sit."""
    return _Planner(program).plan


class _Planner:
    def __init__(self, program: Program) -> None:
        self.flow = follow(program)
        self.plan = Plan(self.flow)
        self.named: dict[int, Quantizer] = {}
        self.counts: dict[str, int] = {}
        for k, value in enumerate(program.inputs):
            self.plan.inputs.append(self._of_end(f"input_{k}", value))
        for op in self.flow.ops:
            if op.primitive in CONTRACTIONS and any(self.flow[v].dynamic for v in op.inputs):
                self._contraction(op)
            elif op in self.flow.residual:
                self._residual(op)
        for k, value in enumerate(program.graph.outputs):
            dynamic = self.flow[value].dynamic
            self.plan.outputs.append(self._of_end(f"output_{k}", value) if dynamic else None)

    def _of_end(self, name: str, value: Value) -> Quantizer | None:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        quantizer = Quantizer(name, name)
        self.named.setdefault(id(value), quantizer)
        return quantizer

    def _contraction(self, op: Op) -> None:
        facts = [self.flow[value] for value in op.inputs[:2]]
        leaf = next((fact.leaf for fact in facts if fact.leaf and not fact.dynamic), None)
        layer = self.plan.layers[op] = _layer(leaf) if leaf else op.scope or op.primitive
        for operand, fact in enumerate(facts):
            if not jnp.issubdtype(op.inputs[operand].dtype, jnp.floating):
                continue
            if fact.dynamic:
                self._place(op, operand, layer, "input" if leaf else f"operand_{operand}")
            else:
                name = self._unique(f"{layer}/weight")
                axes = channel_axes(op, operand)
                quantizer = Quantizer(name, layer, weight=True, channel_axes=axes)
                self.plan.at.setdefault(op, {})[operand] = quantizer

    def _residual(self, op: Op) -> None:
        layer = self._unique(f"{op.scope}/{op.primitive}" if op.scope else op.primitive)
        self.plan.layers[op] = layer
        for operand in (0, 1):
            if jnp.issubdtype(op.inputs[operand].dtype, jnp.floating):
                self._place(op, operand, layer, f"operand_{operand}")

    def _place(self, op: Op, operand: int, layer: str, role: str) -> None:
        """One quantizer per tensor: a second consumer shares the first one's."""
        key = id(op.inputs[operand])
        if key not in self.named:
            self.named[key] = Quantizer(self._unique(f"{layer}/{role}"), layer)
        self.plan.at.setdefault(op, {})[operand] = self.named[key]

    def _unique(self, name: str) -> str:
        count = self.counts.get(name, 0)
        self.counts[name] = count + 1
        return f"{name}_{count}" if count else name


def _layer(leaf: str) -> str:
    """The module of a kernel; a weight with a name of its own is a layer by itself."""
    path = strip_collection(leaf)
    return (parent(path) or path) if leaf_name(path) in _KERNELS else path


def channel_axes(op: Op, operand: int) -> tuple[int, ...]:
    """The axes of a contraction's operand that become output channels."""
    numbers: Any = op.params["dimension_numbers"]
    if op.primitive == "conv_general_dilated":
        return (numbers.rhs_spec[0],) if operand == 1 else ()
    contracted = numbers[0][operand]
    return tuple(k for k in range(len(op.inputs[operand].shape)) if k not in contracted)
