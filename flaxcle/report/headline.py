"""The first table: float, then each network on its integer grid, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxcle.cache import compiled
from flaxcle.compare import compare, sqnr
from flaxcle.errors import ConfigError
from flaxcle.paths import PyTree, float_leaves
from flaxcle.quantize import Calibration, QuantConfig, fake_quant
from flaxcle.report.subject import Data, Function, Network, Subject
from flaxcle.tables import Table

Outputs = list[list[np.ndarray]]


def arithmetic(config: QuantConfig) -> str:
    """'int8', or what else it is: 'W4A8'."""
    if config.weight_bits == config.act_bits == 8:
        return "int8"
    parts = (("W", config.weight_bits), ("A", config.act_bits))
    return "".join(f"{letter}{bits}" for letter, bits in parts if bits is not None) or "float"


def measured_headline(subject: Subject, floats: Outputs, labels: Any) -> Table:
    """The table for all inputs of the subject.

    Agreement and accuracy are those of the last axis of a single output; other functions have
    the SQNR only.

    Args:
        subject: the networks.
        floats: the float outputs of the original, per batch.
        labels: the class of each row of all batches.

    Raises:
        ConfigError: labels for a function that does not return rows of logits.
    """
    name = arithmetic(subject.before.config)
    rows = {name: subject.before, f"{name}, equalized": subject.after}
    if subject.final is not None:
        way = "biases corrected" if subject.stages is None else "the recipe"
        rows[f"{name}, {way}"] = subject.final
    outputs = {name: quantized_outputs(network, subject.data) for name, network in rows.items()}
    if all(len(batch) == 1 and batch[0].ndim > 1 for batch in floats):
        joined = {name: _joined(outs) for name, outs in outputs.items()}
        return compare(_joined(floats), joined, labels)
    if labels is not None:
        raise ConfigError(
            "labels need a function that returns one array of logits",
            where=f"it returns {[leaf.shape for leaf in floats[0]]}",
            then="leave the labels out",
        )
    clean = _flat(floats)
    noisy = ((name, sqnr(clean, _flat(outs))) for name, outs in outputs.items())
    return Table(("", "SQNR dB"), (("float", float("inf")), *noisy))


def float_outputs(fn: Function, params: PyTree, data: Data) -> Outputs:
    """The float outputs, per batch."""
    run = compiled(_evaluated, fn)
    return [list(map(np.asarray, run(params, inputs))) for inputs in data]


def quantized_outputs(network: Network, data: Data) -> Outputs:
    """The outputs on the integer grid, per batch."""
    run = compiled(_quantized, network.fn, network.config)
    out = (run(network.params, network.calibration, inputs) for inputs in data)
    return [list(map(np.asarray, leaves)) for leaves in out]


def _evaluated(fn: Function, params: PyTree, inputs: tuple[Any, ...]) -> list[jax.Array]:
    return float_leaves(fn(params, *inputs))


def _quantized(
    fn: Function, config: QuantConfig, params: PyTree, ranges: Calibration, inputs: tuple[Any, ...]
) -> list[jax.Array]:
    return float_leaves(fake_quant(fn, config, ranges)(params, *inputs))


def _joined(outputs: Outputs) -> np.ndarray:
    return np.concatenate([batch[0] for batch in outputs])


def _flat(outputs: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.concatenate([leaf.ravel() for batch in outputs for leaf in batch])
