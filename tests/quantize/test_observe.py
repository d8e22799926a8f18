"""What is remembered of a tensor over several batches, and the ranges it gives, against NumPy."""

from __future__ import annotations

import itertools
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import QuantConfig
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.observe import State, look, merge, range_of

OBSERVERS = ["minmax", "moving_average", "percentile", "mse"]
HISTOGRAMS = ["percentile", "mse"]
RNG = np.random.default_rng(0)
TENSORS = {
    "normal": RNG.normal(size=20000),
    "heavy tails": RNG.standard_t(2, size=20000),
    "uniform": RNG.uniform(-3, 5, size=20000),
    "after relu": np.maximum(RNG.normal(size=20000), 0),
    "mostly zero": np.where(RNG.uniform(size=20000) < 1e-3, RNG.normal(size=20000), 0),
    "far from zero": 10 + RNG.normal(size=20000),
    "negative": -RNG.gamma(2.0, size=20000),
}


def seen(batches: list[np.ndarray], observer: str, momentum: float = 0.9) -> State:
    states = [look(jnp.asarray(batch, jnp.float32), observer) for batch in batches]
    return reduce(lambda old, new: merge(old, new, observer, momentum), states)


def range_after(batches: list[np.ndarray], **options: Any) -> tuple[float, float]:
    config = QuantConfig(**options)
    low, high = range_of(seen(batches, config.act_observer, config.momentum), config)
    return float(low), float(high)


def test_minmax_is_that_of_all_batches() -> None:
    batches = np.split(TENSORS["normal"].astype(np.float32), 5)
    low, high = range_after(batches)
    assert (low, high) == (np.min(batches), np.max(batches))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_moving_average_starts_with_the_first_batch(momentum: float) -> None:
    batches = np.split(TENSORS["heavy tails"].astype(np.float32), 5)
    low, high = batches[0].min(), batches[0].max()
    for batch in batches[1:]:
        low = momentum * low + (1 - momentum) * batch.min()
        high = momentum * high + (1 - momentum) * batch.max()
    got = range_after(batches, act_observer="moving_average", momentum=momentum)
    np.testing.assert_allclose(got, (low, high), rtol=1e-6)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_percentile_is_numpys_within_a_bin(name: str, percentile: float, parts: int) -> None:
    x = TENSORS[name].astype(np.float32)
    got = range_after(np.split(x, parts), act_observer="percentile", percentile=percentile)
    tail = (100 - percentile) / 2
    width = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / 2048
    want = [s * np.percentile(s * x, tail, method="inverted_cdf") for s in (1, -1)]
    assert want[0] - 1.01 * width <= got[0] <= want[0]
    assert want[1] <= got[1] <= want[1] + 1.01 * width
    if percentile == 100.0:
        assert got == (x.min(), x.max())


def squared_error(x: np.ndarray, limits: tuple[float, float], symmetric: bool) -> float:
    grid = make_grid(*(jnp.float32(v) for v in limits), 4, symmetric=symmetric)
    return float(((np.asarray(snap(jnp.asarray(x), grid), np.float64) - x) ** 2).sum())


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_not_worse_than_minmax(name: str, symmetric: bool) -> None:
    x = TENSORS[name].astype(np.float32)
    options: dict[str, Any] = {"act_bits": 4, "act_symmetric": symmetric}
    best = range_after(np.split(x, 4), act_observer="mse", **options)
    plain = range_after([x], **options)
    assert min(plain[0], 0) <= best[0] <= 0 <= best[1] <= max(plain[1], 0)
    error, most = squared_error(x, best, symmetric), squared_error(x, plain, symmetric)
    assert error <= most
    if name == "heavy tails":
        assert error < 0.9 * most


def test_mse_keeps_a_sparse_tensor_whose_zeros_are_exact() -> None:
    """All but one value are zero: clipping that one would be the only error."""
    x = np.zeros(1_000_000, np.float32)
    x[0] = 1.0
    assert range_after([x], act_observer="mse") == (0.0, 1.0)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-35])
def test_constant_tensors_give_their_value(observer: Any, value: float) -> None:
    """Trap 34."""
    x = np.full(100, value, np.float32)
    low, high = range_after([x, x], act_observer=observer)
    assert low <= high
    grid = make_grid(jnp.float32(low), jnp.float32(high), 8, symmetric=False)
    np.testing.assert_allclose(snap(jnp.asarray(x), grid), x, rtol=1e-6)


@pytest.mark.parametrize("observer", [o for o in OBSERVERS if o != "moving_average"])
def test_order_of_the_batches_does_not_matter(observer: str) -> None:
    batches = [s * RNG.normal(size=1000) for s in (1e-6, 0.1, 0.0, 7.0)]
    first, *others = (seen(list(order), observer) for order in itertools.permutations(batches))
    for state in others:
        jax.tree.map(np.testing.assert_array_equal, state, first)


@pytest.mark.parametrize("observer", HISTOGRAMS)
def test_widening_equals_one_look_at_everything(observer: str) -> None:
    batches = [s * RNG.normal(size=1000) for s in (0.01, 1.0, 90.0)]
    whole = look(jnp.asarray(np.concatenate(batches), jnp.float32), observer)
    jax.tree.map(np.testing.assert_array_equal, seen(batches, observer), whole)


def test_counts_are_exact_beyond_what_float32_can_add_to() -> None:
    x = jnp.zeros(2**24 + 128, jnp.bfloat16)
    assert int(look(x, "percentile")["counts"].sum()) == x.size


def unreached(observer: str) -> State:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), look(jnp.ones(3), observer))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_tensor_that_was_not_reached_gives_way(observer: str) -> None:
    state = look(jnp.asarray(TENSORS["normal"], jnp.float32), observer)
    for pair in ((state, unreached(observer)), (unreached(observer), state)):
        jax.tree.map(np.testing.assert_array_equal, merge(*pair, observer, 0.9), state)
    neither = merge(unreached(observer), unreached(observer), observer, 0.9)
    assert np.isnan(neither["low"])


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nan_and_infinity_stay_visible(observer: str, bad: float, momentum: float) -> None:
    good, broken = np.arange(4.0), np.array([1.0, bad, 2.0])
    for order in itertools.permutations([good, good, broken]):
        state = seen(list(order), observer, momentum)
        assert np.isinf([state["low"], state["high"]]).any()
        assert not np.isnan([state["low"], state["high"]]).any()


@pytest.mark.parametrize("observer", OBSERVERS)
def test_leading_axes_stay_apart(observer: Any) -> None:
    config = QuantConfig(act_observer=observer, act_bits=4, percentile=99.0)
    rows = [np.stack([s * RNG.normal(size=500) for s in (0.1, 3.0, 40.0)]) for _ in range(3)]
    each = jax.vmap(lambda row: look(row, observer))
    states = [each(jnp.asarray(row, jnp.float32)) for row in rows]
    low, high = range_of(reduce(lambda a, b: merge(a, b, observer, 0.9), states), config)
    assert low.shape == high.shape == (3,)
    for k in range(3):
        alone = range_of(seen([row[k] for row in rows], observer), config)
        np.testing.assert_array_equal((low[k], high[k]), alone)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_observed_in_float32(observer: str, dtype: Any) -> None:
    x = jnp.asarray(TENSORS["normal"], dtype)
    got, want = look(x, observer), look(x.astype(jnp.float32), observer)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
