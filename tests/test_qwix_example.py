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


@pytest.fixture(scope="module")
def case():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    plain = Net(activation=nn.relu6)
    variables = plain.init(jax.random.key(1), x)
    spread = jnp.logspace(-1, 1, 8)
    variables["params"]["Conv_0"]["kernel"] *= spread
    variables["params"]["Conv_1"]["kernel"] /= spread[:, None]
    variables["batch_stats"]["BatchNorm_0"]["mean"] += 0.1
    return x, plain, variables, qwix_int8.with_bounds(Net(), variables, x)


def test_a_bound_of_six_is_relu6(case):
    x, plain, variables, bounded = case
    np.testing.assert_array_equal(Net().apply(bounded, x), plain.apply(variables, x))


def test_every_way_is_nearer_to_float_after_equalizing_per_tensor_weights(case):
    x, plain, variables, bounded = case
    clean = np.asarray(plain.apply(variables, x))
    networks = qwix_int8.variants(Net(), bounded, x)
    ways = {
        "ptq": qwix_int8.ptq(Net(), [x]),
        "per tensor": qwix_int8.odml(Net(), [x], [x], per_channel=False),
    }
    rows = qwix_int8.measure(Net(), networks, ways, clean)
    found = {(row["qwix"], row["params"]): row["SQNR dB"] for row in rows}
    assert set(networks) == {"as trained", "folded", "folded and equalized"}
    assert min(found.values()) > 5
    assert found["per tensor", "folded and equalized"] > found["per tensor", "folded"] + 3
