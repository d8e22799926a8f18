"""What each stage of the recipe is worth: the recipe without it, on test data.

    python benchmarks/accuracy_stages.py [--networks NAME ...] [--bits W8A8 ...] [--images N]

Per tensor. Each row is `quantize_recipe` with one stage left out, everything else as always.
Results are merged into the file; `accuracy_table.py` prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
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
    """The recipe without a stage; what came before it is known from the other runs."""

    left_out: str | None = None
    known: dict[Any, Any] = field(default_factory=dict)

    def applied(self, name: str, stage: Any, line: Any, start: float) -> Any:
        if self.left_out is not None and name.startswith(self.left_out):
            return line
        whole = super().applied

        def run() -> Any:
            made = whole(name, stage, line, start)
            return None if made is line else made

        made = self._once(("applied", name, line.stages), run)
        return line if made is None else made

    def judged(self, one: Any, name: str) -> Any:
        run = super().judged
        new = self._once(("judged", name, one.stages), lambda: run(one, name))
        return replace(new, noise_corrected=np.inf) if self.left_out == "correct biases" else new

    def _once(self, key: Any, run: Callable[[], Any]) -> Any:
        """What a stage makes depends on the stages before it alone."""
        if key not in self.known:
            self.known[key] = run()
        return self.known[key]


def without(bench: Bench, config: fc.QuantConfig, stage: str | None, known: Any) -> fc.Recipe:
    """The recipe without a stage, or all of it."""
    data = list(map(as_inputs, bench.subject.calibration))
    fn, variables = bench.subject.fn, bench.subject.variables
    return Without(fn, variables, data, config, 1.0, left_out=stage, known=known).cook(True)


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
            known: dict[Any, Any] = {}
            whole = without(bench, config, None, known)
            results = {"recipe": bench.served(whole, None)}
            tried = whole.stages.column("stage")
            for stage in (s for s in STAGES if any(name.startswith(s) for name in tried)):
                made = without(bench, config, stage, known)
                results[f"without {stage}"] = bench.served(made, None)
            key = {"network": name, "bits": bits, "per": "tensor", "run": "stages"}
            keep(chosen.json, key, sum(map(len, bench.subject.calibration)), results)


if __name__ == "__main__":
    main()
