"""How near is a quantized network to the float one: accuracy, agreement, SQNR."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from flaxcle.errors import ConfigError
from flaxcle.tables import Table


def sqnr(reference: jax.Array | np.ndarray, other: jax.Array | np.ndarray) -> float:
    """Signal to quantization noise ratio in dB, `10 log10(sum(ref**2) / sum((ref - x)**2))`.

    Infinite for identical arrays.

    Example:
        >>> round(sqnr(np.ones(4), np.ones(4) * 1.1), 1)
        20.0
    """
    clean = np.asarray(reference, np.float64)
    noise = np.sum((clean - np.asarray(other, np.float64)) ** 2)
    return float(10 * np.log10(np.sum(clean**2) / noise)) if noise else float("inf")


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
        ConfigError: the shapes differ.

    Example:
        >>> logits = np.array([[2.0, 1.0], [0.0, 1.0]])
        >>> print(compare(logits, {"int8": logits + [[0.1, 0.0]]}, labels=np.array([0, 0])))
               accuracy %  agreement %  SQNR dB
        float          50          100      inf
        int8           50          100   24.771
    """
    clean = np.asarray(reference)
    rows = [_row("float", clean, clean, labels)]
    rows += [_row(name, np.asarray(out), clean, labels) for name, out in candidates.items()]
    accuracy = ("accuracy %",) if labels is not None else ()
    return Table(("", *accuracy, "agreement %", "SQNR dB"), tuple(rows))


def _row(name: str, out: np.ndarray, clean: np.ndarray, labels: object) -> tuple[object, ...]:
    if out.shape != clean.shape:
        raise ConfigError(
            f"{name!r} has outputs of another shape than the reference",
            where=f"{out.shape} against {clean.shape}",
            then="evaluate both on the same inputs",
        )
    chosen = out.argmax(-1)
    agreement = 100 * float(np.mean(chosen == clean.argmax(-1)))
    truth = () if labels is None else (100 * float(np.mean(chosen == np.asarray(labels))),)
    return (name, *truth, agreement, sqnr(clean, out))
