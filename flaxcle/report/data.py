"""What a report says, as plain data: the page is drawn from this and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flaxcle.analysis import RangeStatistics
from flaxcle.quantize import QuantConfig
from flaxcle.tables import Table
from flaxcle.verify import Equivalence

State = Literal["scaled", "held", "undeclared", "blocked"]
Hint = Literal["fold", "clips", "undeclared"]
Verdict = Literal["good", "fair", "bad", "neutral"]


@dataclass(frozen=True)
class Side:
    """What may rescale the channels that a layer reads or makes.

    Attributes:
        state: moved by a group, held back, possible but not declared, or blocked.
        group: the name of the group, where there is one.
        reason: why not, where it is blocked.
        source: `file:line` of the model's code that blocks it.
    """

    state: State
    group: str = ""
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class Node:
    """One place of the network that reads or makes quantized tensors.

    Attributes:
        layer: what a person calls it; joins with the tables of ranges and sensitivity.
        kind: `input`, `convolution`, `depthwise`, `dense`, `product`, `add` or `output`.
        detail: its sizes, in words.
        inputs: the numbers of the earlier nodes whose outputs it reads.
        source: `file:line` of the model's code.
        leaf: path of its weight, where that is one leaf.
        out_axes: axes of that leaf that become its output channels.
        reads: what may rescale the channels that it reads.
        makes: what may rescale those that it makes.
    """

    layer: str
    kind: str
    detail: str = ""
    inputs: tuple[int, ...] = ()
    source: str = ""
    leaf: str = ""
    out_axes: tuple[int, ...] = ()
    reads: Side | None = None
    makes: Side | None = None


@dataclass(frozen=True)
class Answer:
    """A question that a reader has, and what the numbers say."""

    question: str
    verdict: Verdict
    text: str
    section: str


@dataclass(frozen=True)
class Advice:
    """One thing to do next: why, and the code."""

    text: str
    code: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, before anybody draws a conclusion.

    Attributes:
        title: of the page.
        config: the arithmetic.
        headline: the float row, those of `before` and `after`, then others.
        unchanged: how far the float outputs of `after` are from those of `before`.
        nodes: the network, in program order.
        before, after: the ranges of both, on the grid of `config`.
        sensitivity, memory: of `after`.
        scales: one row for each group.
        blocked: one row for each reason.
        stages: of the recipe.
        hints: what was found to be left undone: `fold`, `clips`, `undeclared`.
    """

    title: str
    config: QuantConfig
    headline: Table
    unchanged: Equivalence
    nodes: tuple[Node, ...]
    before: RangeStatistics
    after: RangeStatistics
    sensitivity: Table
    memory: Table
    scales: Table
    blocked: Table
    stages: Table | None
    hints: frozenset[Hint]
