"""The example that hands params to qwix: on a small network with channels far apart."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

if find_spec("qwix") is None:
    pytest.skip("the extra 'qwix' is not installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # qwix uses names that jax will remove
    import qwix_int8

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nn.Module):
    activation: object = qwix_int8.bounded

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(4)(self.activation(nn.Conv(8, (1, 1))(x)).mean((1, 2)))


@pytest.fixture(scope="module", autouse=True)
def _as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


X = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))


@pytest.fixture(scope="module")
def bounded():
    """The variables of the network with bounds, made from those of the one with ReLU6."""
    plain = Net(activation=nn.relu6)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, plain.init(jax.random.key(1), X))
    bounded = qwix_int8.with_bounds(Net(), variables, X)
    np.testing.assert_array_equal(Net().apply(bounded, X), plain.apply(variables, X))
    return bounded


def test_equalizing_gives_back_what_scales_far_apart_cost(bounded):
    folded = fc.fold_batch_norm(Net().apply, bounded, X)
    spec, rng = fc.find_spec(Net().apply, folded, X), np.random.default_rng(0)
    drawn = {g.name: jnp.asarray(rng.uniform(-5, 5, g.shape), jnp.float32) for g in spec.groups}
    networks = {
        "before": fc.apply_scales(folded, fc.Scales(drawn), spec),
        "after": qwix_int8.variants(Net(), bounded, X)["folded and equalized"],
    }
    ways = {
        "ptq": qwix_int8.ptq(Net(), [X]),
        "odml": qwix_int8.odml(Net(), [X], [X], per_channel=False),
    }
    clean = np.asarray(Net().apply(bounded, X))
    table = qwix_int8.measure(networks, ways, clean)
    found = {(row["qwix"], row["params"]): row["SQNR dB"] for row in table}
    assert min(found[way, "after"] for way in ways) > 25
    assert max(found[way, "before"] for way in ways) < 20
