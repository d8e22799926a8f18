"""Random networks: whatever is found keeps the function, and nothing that keeps it is missed.

    pytest tests/discover/test_random.py --hypothesis-profile=many

tries 500 and 200 networks instead of the fixed few.
"""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, assume, given, settings

from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle.discover import find_spec
from random_networks import RandomNetwork, random_networks

SOUND = 500 if settings.get_current_profile_name() == "many" else 25
COMPLETE = 200 if settings.get_current_profile_name() == "many" else 8
MOST_PARAMETERS = 120

tried = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(tried, max_examples=SOUND)
@given(random_networks())
def test_random_scales_leave_a_random_network_unchanged(network: RandomNetwork):
    params, x = network.params, network.x
    spec = find_spec(network, params, x)
    run, wide = in_float64(network, x), widened(params)
    moved = apply_table(wide, spec, random_log2(spec))
    for before, after in zip(run(wide), run(moved), strict=True):
        assume(np.isfinite(before).all())
        np.testing.assert_allclose(
            after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max(initial=0)
        )
