"""What each stage of the recipe is worth: the recipe without it, on test data.

    python benchmarks/accuracy_stages.py [--networks NAME ...] [--bits W8A8 ...] [--images N]

Per tensor. Each row is `quantize_recipe` with one stage left out, everything else as always.
Results are merged into the file; `accuracy_table.py` prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accuracy import BITS, Bench, config_of, keep
from accuracy_nets import NAMES, load

import flaxcle as fc
from flaxcle.quantize.calibrate import as_inputs
from flaxcle.recipe.stages import Kitchen

STAGES = (
    "fold BatchNorm",
    "expose clips",
    "prune dead channels",
    "equalize",
    "learn scales",
    "round weights",
    "ranges",
    "learn ranges",
    "correct biases",
)
DATA = Path(__file__).parent / "results" / "accuracy_stages.json"


@dataclass
class Without(Kitchen):
    """The recipe without a stage."""

    left_out: str = ""

    def applied(self, name: str, stage: Any, line: Any, start: float) -> Any:
        if name.startswith(self.left_out):
            return line
        return super().applied(name, stage, line, start)

    def measured(self, one: Any, name: str, start: float) -> Any:
        if self.left_out != "correct biases":
            return super().measured(one, name, start)
        best = self.best
        new = replace(super().measured(one, name, start), noise_corrected=float("inf"))
        self.best = best if best is not None and best.noise <= new.noise else new
        return new


def without(bench: Bench, config: fc.QuantConfig, stage: str) -> fc.Recipe:
    data = list(map(as_inputs, bench.subject.calibration))
    kitchen = Without(bench.subject.fn, bench.subject.variables, data, config, 1.0, left_out=stage)
    return kitchen.cook(rounding=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--json", type=Path, default=DATA)
    chosen = parser.parse_args(arguments)
    for name in chosen.networks:
        bench = Bench(load(name), chosen.images)
        for bits in chosen.bits:
            config = config_of(bits, "tensor")
            results = {"recipe": bench.served(_whole(bench, config), None)}
            for stage in STAGES:
                made = without(bench, config, stage)
                results[f"without {stage}"] = bench.served(made, None)
            key = {"network": name, "bits": bits, "per": "tensor", "run": "stages"}
            keep(chosen.json, key, sum(map(len, bench.subject.calibration)), results)


def _whole(bench: Bench, config: fc.QuantConfig) -> fc.Recipe:
    return fc.quantize_recipe(
        bench.subject.fn, bench.subject.variables, bench.subject.calibration, config
    )


if __name__ == "__main__":
    main()
