"""Two face detectors in int8, before and after equalization, with every scale found automatically.

    python examples/detectors/boxes.py [tiny_face | ssd_mobilenetv1] ...

Weights and activations have one scale a tensor. Calibration sees eight crops of the picture, never
the whole of it; there is one picture only, so boxes are reported, no accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parent))

import detectors

CONFIG = fc.QuantConfig(weight_bits=8, act_bits=8)
CROPS = ((0, 0), (0, 64), (0, 128), (64, 0), (64, 128), (128, 0), (128, 64), (128, 128))
CROP = 384


@dataclass(frozen=True)
class Row:
    """What one version of a detector sees: its best box, the score, and the distance to float."""

    name: str
    boxes: int
    box: np.ndarray
    score: float
    overlap: float
    sqnr: float

    def __str__(self) -> str:
        """One line of the table."""
        box = ", ".join(f"{512 * edge:3.0f}" for edge in self.box)
        return (
            f"| {self.name} | {self.boxes} | {box} | {self.score:.3f} | {self.overlap:.3f} "
            f"| {self.sqnr:.1f} |"
        )


def rows(name: str, picture: np.ndarray) -> list[Row]:
    """The detector in float and in int8, step by step."""
    detector = getattr(detectors, name)()
    x = detector.prepare(picture)
    crops = [detector.prepare(picture[i : i + CROP, j : j + CROP]) for i, j in CROPS]
    exact = jax.jit(detector.fn)(detector.variables, x)
    table = [_row("float", detector, exact, exact)]

    def add(label: str, fn: Callable[..., Any], variables: Any) -> None:
        table.append(_row(label, detector, jax.jit(fn)(variables, x), exact))

    folded = detector.variables
    if "batch_stats" in folded:  # Tiny YOLO comes without norms
        folded = fc.fold_batch_norm(detector.fn, folded, x)
    calibration = fc.calibrate(detector.fn, folded, crops, CONFIG)
    add("int8", fc.fake_quant(detector.fn, CONFIG, calibration), folded)
    fn, variables = fc.expose_clips(detector.fn, folded, x)
    variables = fc.prune_dead_channels(fn, variables, x)
    variables = fc.equalize(variables, fc.find_spec(fn, variables, x))
    add("float, equalized", fn, variables)
    calibration = fc.calibrate(fn, variables, crops, CONFIG)
    int8 = fc.fake_quant(fn, CONFIG, calibration)
    add("int8, equalized", int8, variables)
    variables = fc.correct_bias(fn, variables, crops, CONFIG)
    add("int8, equalized, bias corrected", int8, variables)
    return table


def _row(label: str, detector: Any, outputs: Any, exact: Any) -> Row:
    found = detectors.suppress(*detector.decode(outputs))
    best = detectors.suppress(*detector.decode(exact))[0][0]
    box, score = found[0] if found else (np.zeros(4), 0.0)
    overlap = detectors.intersection_over_union(box, best) if found else 0.0
    flat = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(o)]) for o in (exact, outputs)
    )
    return Row(label, len(found), box, score, overlap, float(fc.sqnr(*flat)))


def main() -> None:
    picture = np.load(Path(__file__).parent / "astronaut.npz")["picture"]
    for name in sys.argv[1:] or ("tiny_face", "ssd_mobilenetv1"):
        print(
            f"\n{name}\n\n| | boxes | best: top, left, bottom, right | score | overlap | SQNR, dB |"
        )
        print("|---|---|---|---|---|---|")
        for row in rows(name, picture):
            print(row)


if __name__ == "__main__":
    main()
