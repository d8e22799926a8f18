"""The places that a reader can choose: each weight and each activation, layer by layer.

A place is a weight with the activations that its layer reads, or the activations of a sum, an input
or an output. Values are counted in steps of the grid that they are rounded to. The invariant: both
networks have the same places, in the order of the data flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxcle.analysis import Histogram, RangeStatistics
from flaxcle.report.data import Findings, Node
from flaxcle.tables import Table

MOST_CHANNELS = 256
DIGITS = 3
APART = 3  # steps: clipped values are drawn beside the grid
STATES = ("before", "after")
FIVE = ("min", "q1", "median", "q3", "max")
COLUMNS = (
    *("layer", "tensor", "kind", "min", "max", "scale", "zero point", "max/median"),
    *("under half a step %", "clipped %", "SQNR dB", "SQNR dB before"),
)


@dataclass(frozen=True)
class Place:
    """What can be chosen.

    Attributes:
        label: what the reader sees.
        layer: joins with the nodes.
        weight: the name of its weight; empty where there is none.
        activations: the names of its activations.
    """

    label: str
    layer: str
    weight: str
    activations: tuple[str, ...]


def find_places(nodes: Iterable[Node], ranges: RangeStatistics) -> tuple[Place, ...]:
    """The places of a network."""
    weights, activations = _by_layer(ranges.weights), _by_layer(ranges.activations)
    found: list[Place] = []
    for layer in dict.fromkeys(node.layer for node in nodes):
        read = tuple(activations.get(layer, ()))
        for name in weights.get(layer, ()):
            label = name.replace("/weight", "")
            found.append(Place(label, layer, name, _of_turn(name, read)))
        if layer not in weights and read:
            found.append(Place(layer, layer, "", read))
    return tuple(found)


def _by_layer(table: Table) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for row in table:
        out.setdefault(row["layer"], []).append(row["name"])
    return out


def _of_turn(weight: str, names: Sequence[str]) -> tuple[str, ...]:
    """The activations of the same turn of a loop; all where they differ in loops."""
    turn = weight.partition("[")[2]
    same = tuple(name for name in names if name.partition("[")[2] == turn)
    return same or tuple(names)


def range_table(findings: Findings) -> Table:
    """One row for each tensor: its range and grid, and what the grid costs, before and after."""
    rows = []
    for kind in ("weights", "activations"):
        old = {row["name"]: row["SQNR dB"] for row in getattr(findings.before, kind)}
        for row in getattr(findings.after, kind):
            values = {**row, "tensor": row["name"], "kind": kind}
            values["SQNR dB before"] = old.get(row["name"])
            rows.append(tuple(values.get(column) for column in COLUMNS))
    return Table(COLUMNS, tuple(rows))


def box_rows(places: Sequence[Place], ranges: Mapping[str, RangeStatistics]) -> Iterator[Any]:
    """For each place and state the channels' five numbers, in steps."""
    for state in STATES:
        scales = dict(_scales(ranges[state].weights))
        for number, place in enumerate(places):
            five = ranges[state].channels.get(place.weight)
            if five is not None:
                chosen = shown_channels(len(five))
                steps = rounded(five[chosen] / scales[place.weight])
                columns = dict(zip(FIVE, steps.T.tolist(), strict=True))
                yield {"place": str(number), "state": state, "channel": chosen.tolist(), **columns}


def shown_channels(count: int) -> np.ndarray:
    """Which channels are drawn: all, or evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_CHANNELS)).astype(int))


def step_rows(places: Sequence[Place], ranges: Mapping[str, RangeStatistics]) -> Iterator[Any]:
    """For each place, tensor and state the percent of values on each step of the grid."""
    for state in STATES:
        found = ranges[state].histograms
        for number, place in enumerate(places):
            kinds = ("weights", (place.weight,)), ("activations", place.activations)
            for kind, names in kinds:
                for name in names[:1]:
                    if name in found:
                        yield {"place": str(number), "kind": kind, "state": state} | _steps(
                            found[name]
                        )


def _steps(histogram: Histogram) -> dict[str, Any]:
    """Steps and shares; values that are exactly zero lose nothing and are left out."""
    counts = histogram.counts.astype(float)
    total = max(counts.sum() + histogram.below + histogram.above, 1)
    if 0 <= -histogram.first < counts.size:
        counts[-histogram.first] -= histogram.zeros
    steps = (histogram.first + np.arange(counts.size)) * histogram.width
    low, high = int(steps[0]), int(steps[-1])
    steps = np.array([low - APART, *steps, high + APART])
    counts = np.array([histogram.below, *counts, histogram.above])
    kept = counts > 0
    shares = rounded(100 * counts[kept] / total).tolist()
    width = histogram.width
    return {"low": low, "high": high, "width": width, "step": steps[kept].tolist(), "share": shares}


def overview_rows(findings: Findings) -> Iterator[dict[str, Any]]:
    """For each weight, before and after, what the grid does to it."""
    for state in STATES:
        for number, row in enumerate(getattr(findings, state).weights):
            yield {
                "number": number,
                "layer": row["layer"],
                "state": state,
                "SQNR of the weights, dB": _finite(row["SQNR dB"]),
                "largest / median channel": _finite(row["max/median"]),
                "weights under half a step, %": _finite(row["under half a step %"]),
            }


def _scales(table: Table) -> Iterator[tuple[str, float]]:
    return ((row["name"], row["scale"]) for row in table)


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def rounded(values: np.ndarray) -> np.ndarray:
    """To three significant digits, which is more than a pixel."""
    with np.errstate(divide="ignore"):
        power = np.floor(np.log10(np.abs(values)))
    unit = 10.0 ** np.where(np.isfinite(power), power - DIGITS + 1, 0)
    return np.where(values == 0, 0.0, np.round(values / unit) * unit)
