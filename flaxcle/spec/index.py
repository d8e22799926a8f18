"""Which channel of a group each position of a leaf axis belongs to, stored as runs.

A run is `repeat`ed and `tile`d arithmetic: for t in range(tile), for i in range(length), for r in
range(repeat) it names channel `start + i * step` (or -1, 'not scaled', when `start` is -1). A
flatten of (H, W, C) is one run (tile = H*W), a depthwise multiplier one run (repeat = m), a
concat slice two. The invariant: an index is hashable and its size does not grow with the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flaxcle.errors import SpecError


class Run(NamedTuple):
    """`tile` times over, the channels `start, start + step, ...`, each `repeat` times in a row."""

    start: int
    length: int
    step: int = 1
    repeat: int = 1
    tile: int = 1

    @property
    def size(self) -> int:
        """Number of positions that the run covers."""
        return self.length * self.repeat * self.tile

    def expand(self) -> np.ndarray:
        """The channels as a flat array."""
        step = 0 if self.start < 0 else self.step
        one = self.start + step * np.arange(self.length)
        return np.tile(np.repeat(one, self.repeat), self.tile)


@dataclass(frozen=True)
class Index:
    """The channel of each position of a site's axes, C order.

    >>> Index.of(np.array([0, 1, 2, 0, 1, 2]))
    Index(shape=(6,), runs=(Run(start=0, length=3, step=1, repeat=1, tile=2),))
    >>> np.asarray(Index((6,), (Run(0, 3, repeat=2),)))
    array([0, 0, 1, 1, 2, 2])
    """

    shape: tuple[int, ...]
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        """Checks that the runs cover the shape."""
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "runs", tuple(Run(*map(int, run)) for run in self.runs))
        covered = sum(run.size for run in self.runs)
        if covered != math.prod(self.shape):
            raise SpecError(
                "an index must name one channel for each position",
                where=f"shape {self.shape} has {math.prod(self.shape)} positions, runs {covered}",
                then="make the runs cover the leaf's shape along the site's axes",
            )

    @classmethod
    def of(cls, channels: Any) -> Index:
        """Compresses an array of channel numbers (-1: not scaled) into runs."""
        channels = np.asarray(channels)
        if channels.dtype.kind not in "iu":
            raise SpecError(
                "an index must hold channel numbers",
                where=f"got dtype {channels.dtype}",
                then="pass integers, -1 where a position is not scaled",
            )
        return cls(channels.shape, tuple(_compress(channels.ravel())))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The channels as an integer array of `shape`."""
        out = _expand(self)
        return out.astype(dtype) if dtype is not None else out

    @property
    def highest(self) -> int:
        """The highest channel that the index names; -1 when it names none."""
        return max(
            (max(r.start, r.start + (r.length - 1) * r.step) for r in self.runs if r.start >= 0),
            default=-1,
        )

    @property
    def positions(self) -> int:
        """How many positions are scaled."""
        return sum(run.size for run in self.runs if run.start >= 0)


@lru_cache(maxsize=4096)
def _expand(index: Index) -> np.ndarray:
    parts = [run.expand() for run in index.runs]
    out = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    out = out.reshape(index.shape)
    out.flags.writeable = False
    return out


def _compress(flat: np.ndarray) -> Iterable[Run]:
    if not flat.size:
        return []
    flat = np.maximum(flat, -1)
    repeat, values, counts = _repeats(flat)
    if repeat > 1:
        return [run._replace(repeat=repeat) for run in _tiles(_arithmetic(values, None))]
    return _tiles(_arithmetic(values, counts))


def _repeats(flat: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Runs of equal values; `repeat` > 1 when each scaled value stands that often in a row."""
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    counts = np.diff(np.concatenate([starts, [flat.size]]))
    common = int(counts[0])
    if common > 1 and (counts == common).all():
        return common, flat[starts], np.ones_like(counts)
    return 1, flat[starts], counts


def _arithmetic(values: np.ndarray, counts: np.ndarray | None) -> list[Run]:
    """Maximal stretches of channels that advance by one, and of constant channels."""
    if counts is None:
        counts = np.ones_like(values)
    breaks = (np.diff(values) != 1) | (counts[1:] != 1) | (counts[:-1] != 1)
    breaks |= (values[1:] < 0) | (values[:-1] < 0)
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.concatenate([starts, [values.size]]))
    out = []
    for at, length in zip(starts, lengths, strict=True):
        start, count = int(values[at]), int(counts[at])
        if start < 0:
            out.append(Run(-1, int(length) * count, 0))
        else:
            out.append(Run(start, int(length), 1, repeat=count))
    return out


def _tiles(runs: list[Run]) -> list[Run]:
    """Merges equal neighbours into one tiled run."""
    out: list[Run] = []
    for run in runs:
        if out and out[-1]._replace(tile=1) == run and run.start >= 0:
            out[-1] = out[-1]._replace(tile=out[-1].tile + 1)
        else:
            out.append(run)
    return out
