"""Draws `speed.py`'s results: time against parameters.

python benchmarks/speed_plot.py RESULTS.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

STYLES = {
    "default": ("o", "full", "what moves by default"),
    "residual": ("s", "none", "and residual groups"),
}


def labels(results: list[dict[str, Any]]) -> dict[int, tuple[list[str], tuple[float, float]]]:
    """For each number of parameters the networks, and where their highest point is."""
    found: dict[int, tuple[list[str], tuple[float, float]]] = {}
    for entry in results:
        size, top = entry["parameters"], 1e3 * entry["seconds"]
        names, (_, highest) = found.get(size, ([], (size, 0.0)))
        names = list(dict.fromkeys([*names, entry["network"]]))
        found[size] = names, (size, max(top, highest))
    return found


def main() -> None:
    source, out = map(Path, sys.argv[1:3])
    measured = json.loads(source.read_text())
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for colour, dtype in zip(("tab:blue", "tab:orange"), ("float32", "bfloat16"), strict=True):
        own = [entry for entry in measured["results"] if entry["dtype"] == dtype]
        if not own:
            continue
        for groups, (marker, fill, label) in STYLES.items():
            rows = sorted(
                (e["parameters"], 1e3 * e["seconds"]) for e in own if e["groups"] == groups
            )
            if rows:
                axes.loglog(
                    *zip(*rows, strict=True),
                    marker,
                    color=colour,
                    fillstyle=fill,
                    label=f"equalize, {dtype}, {label}",
                    alpha=0.8,
                )
        copies = sorted({(e["parameters"], 1e3 * e["copy_seconds"]) for e in own})
        axes.loglog(*zip(*copies, strict=True), "_", color=colour, label=f"a copy, {dtype}")
    for names, at in labels(measured["results"]).values():
        right = at[0] > 3e8
        axes.annotate(
            "\n".join(names),
            at,
            (-6 if right else 5, 5),
            textcoords="offset points",
            fontsize=7,
            ha="right" if right else "left",
        )
    axes.set(xlabel="parameters", ylabel="milliseconds, warm", title=measured["device"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
