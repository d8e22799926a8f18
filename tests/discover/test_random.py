"""Random networks: whatever is found keeps the function, and nothing that keeps it is missed.

    RANDOM_NETWORKS=many pytest tests/discover/test_random.py

tries 500 and 200 networks instead of a few; they are the same ones every time.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, assume, given, settings

import symmetry_oracle
from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle.discover import find_spec
from random_networks import RandomNetwork, random_networks, size

MANY = os.environ.get("RANDOM_NETWORKS") == "many"
SOUND, COMPLETE = (500, 200) if MANY else (25, 8)
MOST_PARAMETERS = 120

tried = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(tried, max_examples=SOUND)
@given(random_networks())
def test_random_scales_leave_a_random_network_unchanged(network: RandomNetwork):
    with jax.numpy_rank_promotion("allow"):
        params, x = network.params, network.x
        spec = find_spec(network, params, x)
        run, wide = in_float64(network, x), widened(params)
        scaled = apply_table(wide, spec, random_log2(spec))
        for before, after in zip(run(wide), run(scaled), strict=True):
            assume(np.isfinite(before).all())
            largest = np.abs(before).max(initial=0)
            np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * largest)


@settings(tried, max_examples=COMPLETE)
@given(random_networks())
def test_a_random_network_has_no_more_scales_than_are_found(network: RandomNetwork):
    """The oracle's count is believed when it is the same for two seeds."""
    with jax.numpy_rank_promotion("allow"):
        params, x = network.params, network.x
        assume(size(params) <= MOST_PARAMETERS)
        spec = find_spec(network, params, x)
        with jax.enable_x64(True):
            wide, wide_x = jax.tree.map(jnp.asarray, widened((params, x)))
            one, two = (
                symmetry_oracle.count(network, wide, (wide_x,), spec, seed=seed) for seed in (0, 1)
            )
    assume(one.symmetries == two.symmetries)
    assert one.sound
    assert one.complete, (one, spec)
