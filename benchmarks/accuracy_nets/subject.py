"""What is measured: a network in evaluation mode, with its data.

Invariant: no batch in `calibration` comes from what `test` is drawn from, except that the crops of
photos, which no network was trained on, are drawn from the same photos with another seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

Metric = Literal["accuracy", "agreement", "perplexity"]


@dataclass(frozen=True)
class Subject:
    """A network as it was trained: BatchNorm is not folded, dead channels are there.

    `labels` has an array for each batch in `test`: (n,) classes or (n, length) tokens; None where
    nobody knows them, and only the agreement with the float network can be measured.
    """

    name: str
    fn: Callable[..., jax.Array]
    variables: dict[str, Any]
    calibration: list[jax.Array]
    test: list[jax.Array]
    labels: list[jax.Array] | None
    metric: Metric

    @property
    def inputs(self) -> jax.Array:
        """One batch, to trace the network with."""
        return self.calibration[0]
