"""An index is any map of positions to channels, stored as runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxcle import Index, Site
from flaxcle.errors import SpecError
from flaxcle.spec.index import Run

MAPS = {
    "identity": (np.arange(64), 1),
    "flatten, channels last": (np.tile(np.arange(8), 49), 1),
    "flatten, channels first": (np.repeat(np.arange(8), 49), 1),
    "depthwise multiplier": (np.repeat(np.arange(8), 3), 1),
    "concat slice": (np.r_[np.full(5, -1), np.arange(16), np.full(3, -1)], 3),
    "two copies in a concat": (np.r_[np.arange(4), np.full(2, -1), np.arange(4)], 3),
    "one scale for all": (np.zeros(1000, int), 1),
    "reversed": (np.arange(32)[::-1], 1),
    "channel shuffle": (np.arange(96).reshape(2, 48).T.ravel(), 48),
    "interleaved pairs share": (np.repeat(np.arange(16), 2), 1),
    "halves share": (np.tile(np.arange(16), 2), 1),
    "grouped queries": (np.repeat(np.arange(24).reshape(3, 8), 4, axis=0), 3),
    "grouped queries, flat": (np.repeat(np.arange(24).reshape(3, 8), 4, axis=0).ravel(), 3),
    "single, then a stretch": (np.array([9, 0, 1, 2, 3]), 2),
    "grouped convolution": (
        np.arange(64)[None, :] // 16 * 4 + np.arange(4)[:, None],
        4,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_runs_expand_to_the_same_map_and_are_few(name: str) -> None:
    channels, runs = MAPS[name]
    index = Index.of(channels)
    np.testing.assert_array_equal(np.asarray(index), channels)
    assert len(index.runs) == runs
    assert index.highest == channels.max()
    assert index.positions == (channels >= 0).sum()


@pytest.mark.parametrize(
    "make", [lambda n: np.tile(np.arange(8), n), lambda n: np.repeat(np.arange(n), 3)]
)
def test_size_does_not_grow_with_the_axis(make) -> None:
    assert len(Index.of(make(10)).runs) == len(Index.of(make(10_000)).runs) == 1


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=40))
def test_any_map_round_trips(channels: list[int]) -> None:
    array = np.array(channels, dtype=np.int32)
    index = Index.of(array)
    np.testing.assert_array_equal(np.asarray(index), array)
    assert Index.of(np.asarray(index)) == index
    assert len(index.runs) <= max(len(channels), 1)


def test_equal_maps_are_equal_however_they_are_written() -> None:
    pieces = (Run(0, 1), Run(1, 2), Run(3, 1), Run(0, 2, 1), Run(2, 2), Run(-1, 1, 0), Run(-1, 2))
    index = Index((11,), pieces)
    assert index == Index.of(np.r_[np.tile(np.arange(4), 2), np.full(3, -1)])
    assert index.runs == (Run(0, 4, tile=2), Run(-1, 3, 0))
    assert hash(index) == hash(Index((11,), index.runs))


def test_any_shape_and_unsigned_channels() -> None:
    channels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    index = Index.of(channels)
    assert index == Index((2, 3, 4), (Run(0, 24),))
    np.testing.assert_array_equal(np.asarray(index), channels)


def test_is_hashable_and_its_array_can_be_written_without_changing_it() -> None:
    index = Index.of(np.arange(4))
    copy = np.array(index)
    copy[0] = 3
    assert np.asarray(index)[0] == 0
    assert hash(index) == hash(Index.of(np.arange(4)))
    assert np.asarray(index, np.float32).dtype == np.float32


def test_a_site_takes_an_array() -> None:
    site = Site("a/kernel", (0,), -1, np.array([0, 0, 1, 1]))
    assert site.index == Index((4,), (Run(0, 2, repeat=2),))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Index((5,), (Run(0, 4),)), "shape (5,) has 5 positions, runs 4"),
        (lambda: Index((4,), (Run(-2, 4),)), "a run names channels from 0"),
        (lambda: Index((2,), (Run(0, 2, -1),)), "(0, 2, -1, 1, 1)"),
        (lambda: Index((1,), (Run(0, -1, 1, -1),)), "start at -1 for positions that are not"),
        (lambda: Index.of(np.ones(3)), "got dtype float64"),
    ],
)
def test_bad_runs_are_refused(make, text: str) -> None:
    with pytest.raises(SpecError) as error:
        make()
    assert text in str(error.value)
