"""Draws `speed.py`'s results: time against parameters.

python benchmarks/speed_plot.py RESULTS.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

STYLES = {
    "default": ("o", "-", "what moves by default"),
    "residual": ("s", "--", "and residual groups"),
}


def main() -> None:
    source, out = map(Path, sys.argv[1:3])
    measured = json.loads(source.read_text())
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for colour, dtype in zip(("tab:blue", "tab:orange"), ("float32", "bfloat16"), strict=True):
        own = [entry for entry in measured["results"] if entry["dtype"] == dtype]
        if not own:
            continue
        for groups, (marker, line, label) in STYLES.items():
            rows = sorted(
                (e["parameters"], 1e3 * e["seconds"]) for e in own if e["groups"] == groups
            )
            if rows:
                axes.loglog(
                    *zip(*rows, strict=True),
                    marker,
                    color=colour,
                    linestyle=line,
                    label=f"equalize, {dtype}, {label}",
                    alpha=0.8,
                )
        copies = sorted({(e["parameters"], 1e3 * e["copy_seconds"]) for e in own})
        axes.loglog(*zip(*copies, strict=True), "_", color=colour, label=f"a copy, {dtype}")
    for entry in measured["results"]:
        if entry["dtype"] == "float32" and entry["groups"] == "residual":
            at = (entry["parameters"], 1e3 * entry["seconds"])
            axes.annotate(entry["network"], at, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="parameters", ylabel="milliseconds, warm", title=measured["device"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
