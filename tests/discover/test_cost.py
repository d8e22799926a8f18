"""What `find_spec` costs, counted in calls of Python functions, which no machine changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from big_networks import gpt, llama, resnet


def calls(network: Any) -> int:
    """Calls of Python functions in `find_spec`, tracing included, when jax's caches are warm."""
    fn, params, x = network
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        fc.find_spec(fn, params, x)
        sys.setprofile(profile)
        try:
            fc.find_spec(fn, params, x)
        finally:
            sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (llama(4, 256, 8, 4, 512), llama(16, 256, 8, 4, 512)),
        (gpt(4, 64, 4), gpt(16, 64, 4)),
        (resnet(2, 2, 2, 2), resnet(8, 8, 8, 8)),
    ],
    ids=["llama", "gpt", "resnet"],
)
def test_four_times_the_depth_costs_at_most_four_times_as_much(short, long):
    assert calls(long) < 4.2 * calls(short)


def test_the_width_costs_nothing():
    narrow, wide = calls(llama(4, 256, 8, 4, 512)), calls(llama(4, 8192, 8, 4, 28672))
    assert wide < 1.02 * narrow


def test_a_scanned_model_costs_no_more_than_an_unrolled_one():
    unrolled, scanned = (calls(llama(8, 256, 8, 4, 512, scanned=s)) for s in (False, True))
    assert scanned < unrolled
