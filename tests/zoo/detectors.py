"""The two trained face detectors of examples/detectors, at input sizes that run quickly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.base import Chains, Network, image, register

EXAMPLE = Path(__file__).parents[2] / "examples" / "detectors"


def example() -> Any:
    """The module of the example, which is no package."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return import_module("detectors")


def detector(name: str, make: Callable[[], Any], size: int, **facts: Any) -> Network:
    found = make()
    return Network(name, found.fn, found.variables, (image(1, size, size, 3),), **facts)


def tiny_chain() -> Chains:
    blocks = (f"conv{i}_{part}" for i in range(1, 6) for part in ("depthwise", "pointwise"))
    return (("conv0", *blocks, "conv8"),)


@register
def detector_tiny(name: str) -> Network:
    widths = (16, 32, 64, 128, 256)
    scales = 16 + sum(width + 2 * width for width in widths)
    facts = {"shapes": ((1, 3, 3, 25),), "pairs": tiny_chain(), "scales": scales}
    return detector(name, example().tiny_face, 96, **facts)


@register
def detector_ssd(name: str) -> Network:
    anchors = 3 * 8 * 8 + 6 * (4 * 4 + 2 * 2 + 1 + 1 + 1)
    depthwise = 32 + 64 + 2 * 128 + 2 * 256 + 6 * 512 + 1024
    note = "clips everywhere: only the depthwise kernels trade with the BatchNorm behind them"
    facts = {"shapes": ((1, anchors, 4), (1, anchors, 3)), "scales": depthwise, "note": note}
    return detector(name, example().ssd_mobilenetv1, 128, **facts)
