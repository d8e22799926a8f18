"""Findings without a network: as many layers as a test of the page wants, in no time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from flaxcle.analysis import Histogram, RangeStatistics
from flaxcle.analysis.memory import COLUMNS as MEMORY_COLUMNS
from flaxcle.analysis.ranges import ACT_COLUMNS, WEIGHT_COLUMNS
from flaxcle.quantize import QuantConfig
from flaxcle.report.data import Findings, Node, Side
from flaxcle.report.factors import COLUMNS as SCALE_COLUMNS
from flaxcle.report.gather import BLOCKED_COLUMNS
from flaxcle.tables import Table
from flaxcle.verify import Equivalence

NASTY = "</script><b>&'\""


def made_findings(layers: int = 12, channels: int = 48, title: str = "made") -> Findings:
    """A chain of convolutions with a skip over every third; one layer has a nasty name."""
    names = [f"block_{k}/conv" for k in range(layers)]
    names[1] += NASTY
    inf = float("inf")
    headline = (
        ("float", 90.0, 100.0, inf),
        ("int8", 70.0, 75.0, 5.0),
        ("int8, equalized", 89.0, 97.0, 21.0),
    )
    stages = (("as it is", True, 5.0, 6.0, 0.5, ""), ("equalize", False, 21.0, 22.0, 1.5, NASTY))
    return Findings(
        title=title,
        config=QuantConfig(),
        headline=Table(("", "accuracy %", "agreement %", "SQNR dB"), headline),
        unchanged=Equivalence(False, 1e-6, 2e-7, 3e-5),
        nodes=_nodes(names),
        before=_ranges(names, channels, 0),
        after=_ranges(names, channels, 1),
        sensitivity=_sensitivity(names),
        memory=Table(
            MEMORY_COLUMNS, ((names[0], 4096, 1024, 8192, 2048), ("(all)", 4096, 1024, 8192, 2048))
        ),
        scales=Table(
            SCALE_COLUMNS,
            tuple((f"{a} -> {b}", 8, 0.5, 0.8, 1.0, 1.5, 3.0, "yes") for a, b in pairwise(names)),
        ),
        blocked=Table(
            BLOCKED_COLUMNS,
            (("gelu is not positively homogeneous", "leave it", 1, "tanh", "net.py:3", names[2]),),
        ),
        stages=Table(("stage", "kept", "SQNR dB", "corrected dB", "seconds", "remark"), stages),
        hints=frozenset({"clips"}),
    )


def _nodes(names: list[str]) -> tuple[Node, ...]:
    nodes = [Node("input_0", "input", "1\u00d78\u00d78\u00d73")]
    for number, name in enumerate(names):
        inputs = (number,) if number % 3 else tuple({number, max(number - 2, 0)})
        sides = Side("scaled", f"group {number}"), Side("scaled", f"group {number + 1}")
        if number == 2:
            sides = sides[0], Side("blocked", reason="gelu is not positively homogeneous")
        nodes.append(
            Node(
                name, "convolution", "3\u00d73", inputs, "net.py:3", f"{name}/kernel", (3,), *sides
            )
        )
    return (*nodes, Node("output_0", "output", "1\u00d710", (len(nodes) - 1,)))


def _ranges(names: list[str], channels: int, seed: int) -> RangeStatistics:
    rng = np.random.default_rng(seed)
    grid = (0.01, 0, 12.5, 0.5, 30.0)
    weights = [
        (n, f"{n}/weight", f"{n}/kernel", channels, -1.0, 1.2, 4.0 + seed, *grid) for n in names
    ]
    activations = [
        ("input_0", "input_0", -1.0, 1.0, *grid),
        *((n, f"{n}/input", 0.0, 3.0, *grid) for n in names),
    ]
    five = {row[1]: np.sort(rng.normal(size=(channels, 5)), axis=1) for row in weights}
    histograms = {row[1]: _histogram(rng) for row in (*weights, *activations)}
    return RangeStatistics(
        Table(WEIGHT_COLUMNS, tuple(weights)),
        Table(ACT_COLUMNS, tuple(activations)),
        five,
        histograms,
    )


def _histogram(rng: np.random.Generator) -> Histogram:
    return Histogram(0.01, -127, 1, rng.poisson(50, 255), 3, 0, zeros=2, vanished=48)


def _sensitivity(names: list[str]) -> Table:
    rows = [("(all)", "both", 20.0, float("inf"), float("inf"))]
    rows += [("(all)", "weights", 21.0, 27.0, 7.0), ("(all)", "activations", 27.0, 21.0, 1.0)]
    for k, name in enumerate(names):
        rows += [(name, "weights", 25.0 + k, 20.5, 0.5), (name, "activations", 40.0 + k, 20.0, 0.0)]
    return Table(("layer", "kind", "alone dB", "without dB", "gain dB"), tuple(rows))
