"""How near is a quantized network to the float one: accuracy, agreement, SQNR."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from flaxcle.errors import ConfigError
from flaxcle.tables import Table


def sqnr(reference: jax.Array | np.ndarray, other: jax.Array | np.ndarray) -> float:
    """Signal to quantization noise ratio in dB, `10 log10(sum(ref**2) / sum((ref - x)**2))`.

    Infinite for identical arrays, minus infinity where a reference of zeros is missed.

    Raises:
        ConfigError: the shapes differ.

    Example:
        >>> round(sqnr(np.ones(4), np.ones(4) * 1.1), 1)
        20.0
    """
    clean, noisy = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    _check_shape("the other array", noisy, clean)
    return decibel(float(np.sum(clean**2)), float(np.sum((clean - noisy) ** 2)))


def decibel(signal: float, noise: float) -> float:
    """The SQNR of sums of squares: infinite without noise, minus infinity without a signal."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.divide(signal, noise))) if noise else float("inf")


def compare(
    reference: jax.Array | np.ndarray,
    candidates: Mapping[str, jax.Array | np.ndarray],
    labels: jax.Array | np.ndarray | None = None,
) -> Table:
    """The table that tells whether int8 works: one row for the reference and per candidate.

    Accuracy is the share (in percent) of rows whose largest logit is the label's, agreement the
    share whose largest logit is the reference's, SQNR the ratio in dB over all logits.

    Args:
        reference: float outputs, shape (images, classes).
        candidates: name -> outputs of the same shape.
        labels: true classes, shape (images,); without them there is no accuracy column.

    Raises:
        ConfigError: the shapes differ, of the outputs or of the labels.

    Example:
        >>> logits = np.array([[2.0, 1.0], [0.0, 1.0]])
        >>> print(compare(logits, {"int8": logits + [[0.1, 0.0]]}, labels=np.array([0, 0])))
               accuracy %  agreement %  SQNR dB
        float          50          100      inf
        int8           50          100   24.771
    """
    clean, truth = np.asarray(reference), None if labels is None else np.asarray(labels)
    if truth is not None and truth.shape != clean.shape[:-1]:
        raise ConfigError(
            "there must be one label per row of the reference",
            where=f"labels of shape {truth.shape}, outputs of shape {clean.shape}",
            then="pass class indices, not one-hot rows",
        )
    rows = [_row("float", clean, clean, truth)]
    rows += [_row(name, np.asarray(out), clean, truth) for name, out in candidates.items()]
    accuracy = ("accuracy %",) if truth is not None else ()
    return Table(("", *accuracy, "agreement %", "SQNR dB"), tuple(rows))


def _check_shape(name: str, array: np.ndarray, clean: np.ndarray) -> None:
    if array.shape != clean.shape:
        raise ConfigError(
            f"{name} has another shape than the reference",
            where=f"{array.shape} against {clean.shape}",
            then="evaluate both on the same inputs",
        )


def _row(
    name: str, out: np.ndarray, clean: np.ndarray, labels: np.ndarray | None
) -> tuple[object, ...]:
    _check_shape(repr(name), out, clean)
    chosen = out.argmax(-1)
    agreement = 100 * float(np.mean(chosen == clean.argmax(-1)))
    truth = () if labels is None else (100 * float(np.mean(chosen == labels)),)
    return (name, *truth, agreement, sqnr(clean, out))
