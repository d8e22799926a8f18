"""The numbers of the page as one JSON text: what charts are drawn from, and what the reader saves.

The invariant: every table of the page is in it, with what is not finite as null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flaxcle.paths import parent
from flaxcle.report import charts
from flaxcle.report.answers import noise_shares
from flaxcle.report.data import Findings
from flaxcle.report.html import Markup, as_json, short
from flaxcle.report.places import Place, box_rows, overview_rows, step_rows
from flaxcle.tables import Table

RANKED = 25
GROUP_LENGTH = 32
MIB = 2.0**20


def numbers(found: Findings, places: Sequence[Place], noise: Table, tensors: Table) -> Markup:
    """The data of the charts, their specifications, and the tables.

    Args:
        found: what was measured.
        places: those that the reader can choose.
        noise: from `noise_table`.
        tensors: from `range_table`.
    """
    ranges = {"before": found.before, "after": found.after}
    datasets = {
        "overview": list(overview_rows(found)),
        "noise": _ranked(noise, "noise %"),
        "gains": _ranked(noise, "gain dB"),
        "scales": list(_labelled(found.scales)),
        "memory": list(_memory_rows(found.memory)),
        "boxes": list(box_rows(places, ranges)),
        "steps": list(step_rows(places, ranges)),
    }
    tables = {"headline": found.headline, "sensitivity": noise, "ranges": tensors}
    tables |= {"scales": found.scales, "blocked": found.blocked, "memory": found.memory}
    tables |= {} if found.stages is None else {"stages": found.stages}
    counts = {name: len(rows) for name, rows in datasets.items()}
    drawn = {f"chart-{name}": chart for name, chart in _charts(counts).items()}
    return as_json({"charts": drawn, "datasets": datasets, "tables": tables})


def _charts(counts: dict[str, int]) -> dict[str, Any]:
    alone, left = "alone: % of all noise", "left in float: dB won"
    return {
        "overview": charts.overview(),
        "noise": charts.ranked("noise %", alone, "noise", counts["noise"]),
        "gains": charts.ranked("gain dB", left, "gains", counts["gains"]),
        "scales": charts.scales(counts["scales"]),
        "memory": charts.memory(),
        "boxes-before": charts.boxes("before"),
        "boxes-after": charts.boxes("after"),
        "steps-weights": charts.steps("weights"),
        "steps-activations": charts.steps("activations"),
    }


def noise_table(sensitivity: Table) -> Table:
    """The places with their share of the noise, the noisiest first."""
    names = ("layer", "kind", "noise %", "alone dB", "without dB", "gain dB")
    rows = (
        (row["layer"], row["kind"], share, *(row[name] for name in names[3:]))
        for row, share in noise_shares(sensitivity)
    )
    return Table(names, tuple(rows))


def _ranked(noise: Table, measure: str) -> list[dict[str, Any]]:
    """The places that lead by a measure, with labels that fit beside a bar."""
    rows = sorted(noise, key=lambda row: -row[measure])[:RANKED]
    labels = short([row["layer"] for row in rows])
    marks = {"weights": "", "activations": ", in"}
    pairs = zip(rows, labels, strict=True)
    return [{**row, "place": label + marks[row["kind"]]} for row, label in pairs]


def _labelled(scales: Table) -> Iterator[dict[str, Any]]:
    """The groups whose scales are known, with labels that fit."""
    labels = short([_without_repeat(name) for name in scales.column("group")], GROUP_LENGTH)
    for row, label in zip(scales, labels, strict=True):
        if row["median"] is not None:
            yield {**row, "label": label}


def _without_repeat(group: str) -> str:
    """'block/a -> block/b' as 'block/a -> b'."""
    first, arrow, second = group.partition(" -> ")
    module = parent(first) + "/"
    return first + arrow + second.removeprefix(module)


def _memory_rows(table: Table) -> Iterator[dict[str, Any]]:
    total = next(row for row in table if row["layer"] == "(all)")
    for what in ("weights", "activations"):
        for word, column in (("float", "float"), ("integer", "int")):
            yield {"what": what, "as": word, "MiB": total[f"{what} {column} B"] / MIB}
