"""Which channel of a group each position of a leaf axis belongs to, stored as runs.

A run is `repeat`ed and `tile`d arithmetic: for t in range(tile), for i in range(length), for r in
range(repeat) it names channel `start + i * step` (or -1, 'not scaled', when `start` is -1). A
flatten of (H, W, C) is one run (tile = H*W), a depthwise multiplier one run (repeat = m), a
concat slice three. The invariant: equal maps are equal and equally hashed, and the size grows with
the irregularity of the map, not with the length of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
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

    @property
    def last(self) -> int:
        """The last channel; -1 when the run is not scaled."""
        return self.start + (self.length - 1) * self.step if self.start >= 0 else -1

    @property
    def names_channels(self) -> bool:
        """Whether the counts are positive and no channel is below 0 (below -1 when unscaled)."""
        counted = min(self.length, self.repeat, self.tile) > 0
        return counted and self.start >= -1 and (self.start == -1 or self.last >= 0)

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
        """Checks that the runs cover the shape, and rewrites them so that equal maps are equal."""
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "runs", tuple(Run(*map(int, run)) for run in self.runs))
        covered = sum(run.size for run in self.runs)
        if covered != math.prod(self.shape):
            raise SpecError(
                "an index must name one channel for each position",
                where=f"shape {self.shape} has {math.prod(self.shape)} positions, runs {covered}",
                then="make the runs cover the leaf's shape along the site's axes",
            )
        bad = [run for run in self.runs if not run.names_channels]
        if bad:
            raise SpecError(
                "a run names channels from 0, at least one",
                where=f"{tuple(bad[0])} (start, length, step, repeat, tile)",
                then="start at -1 for positions that are not scaled",
            )
        runs = _compress(np.concatenate([run.expand() for run in self.runs] or [np.zeros(0, int)]))
        object.__setattr__(self, "runs", tuple(runs))

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
        return cls(channels.shape, tuple(_compress(channels.astype(np.int64).ravel())))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The channels as an integer array of `shape`."""
        return np.array(_expand(self), dtype, copy=copy)

    @property
    def highest(self) -> int:
        """The highest channel that the index names; -1 when it names none."""
        return max((max(run.start, run.last) for run in self.runs), default=-1)

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
        return ()
    values, counts = _repeats(np.maximum(flat, -1))
    return _tiles(_arithmetic(values, counts))


def _repeats(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values without their repetitions in a row, and how often each stands there."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    return flat[starts], np.diff(np.concatenate([starts, [flat.size]]))


def _arithmetic(values: np.ndarray, counts: np.ndarray) -> Iterator[Run]:
    """Stretches of channels that advance by one step and are repeated equally often."""
    joined = (values[1:] >= 0) & (values[:-1] >= 0) & (counts[1:] == counts[:-1])
    steps = np.append(np.where(joined, np.diff(values), 0), 0)
    ends = np.append(np.flatnonzero(np.diff(steps)) + 1, steps.size)
    at, previous = 0, Run(-1, 0)
    while at < values.size:
        start, count, step = int(values[at]), int(counts[at]), int(steps[at])
        length = 1 + int(ends[np.searchsorted(ends, at, side="right")]) - at if step else 1
        if length == 2 and step != 1 and steps[at + 1] == 1:  # the second starts a better stretch
            length = 1
        if (start, step, count) == (previous.start, previous.step, previous.repeat):
            length = min(length, previous.length)  # the same block again, before the next one
        run = Run(start, length, step if length > 1 else 1, count)
        previous = run if start >= 0 else Run(-1, count, 0)
        yield previous
        at += length


def _tiles(runs: Iterable[Run]) -> Iterator[Run]:
    """Merges equal neighbours into one tiled run."""
    for run, same in groupby(runs):
        yield run._replace(tile=len(list(same)))
