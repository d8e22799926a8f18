"""AIMET for ONNX: its one call for cross-layer equalization, a single sweep over its pairs.

The call looks for the pairs each time, so the seconds that it spends on scaling are told apart.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from importlib.metadata import version
from typing import Any

from common import arguments, run
from onnx_weights import load, names, weighted

chosen = arguments()
os.environ["OMP_NUM_THREADS"] = str(chosen.threads)

from aimet_onnx.cross_layer_equalization import CrossLayerScaling, equalize_model  # noqa: E402

network = load(chosen.network, chosen.folder)
scaling: list[float] = []
scale_all = CrossLayerScaling.scale_cls_sets


def watched(self: CrossLayerScaling, sets: list[Any]) -> Any:
    """The scaling itself, timed."""
    start = time.perf_counter()
    factors = scale_all(self, sets)
    scaling.append(time.perf_counter() - start)
    return factors


CrossLayerScaling.scale_cls_sets = watched


def equalized(model: Any) -> Any:
    """The model itself, which the call changes in place."""
    equalize_model(model)
    return model


def pairs(_: Any) -> int:
    """How many pairs of layers it scales."""
    sets = CrossLayerScaling(copy.deepcopy(network)).scale_model()
    return sum(len(one.cls_pair_info_list) for one in sets)


run(
    "aimet-onnx",
    lambda: copy.deepcopy(network),
    equalized,
    lambda model: weighted(model, names(network)),
    chosen,
    version=version("aimet-onnx"),
    scaling_seconds=lambda _: statistics.median(scaling[1:]),
    pairs=pairs,
    sweeps=1,
)
