"""Order statistics and quantiles, against a sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.quantize.order import order_statistic, quantile

RNG = np.random.default_rng(0)
ARRAYS = {
    "normal": RNG.normal(size=(5, 12, 3)),
    "with ties": RNG.integers(-2, 3, size=(5, 12, 3)).astype(float),
    "both zeros": np.where(RNG.normal(size=(5, 12, 3)) > 0, 0.0, -0.0),
    "all sizes": RNG.normal(size=(5, 12, 3)) * 2.0 ** RNG.integers(-120, 120, size=(5, 12, 3)),
    "infinite": np.where(RNG.normal(size=(5, 12, 3)) > 1, np.inf, RNG.normal(size=(5, 12, 3))),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("axes", [(1,), (0, 2), (0, 1, 2)])
def test_every_rank_is_that_of_a_sort(name: str, axes: tuple[int, ...]) -> None:
    x = ARRAYS[name].astype(np.float32)
    count = int(np.prod([x.shape[k] for k in axes]))
    kept = np.moveaxis(x, axes, range(len(axes))).reshape(count, -1)
    want = np.sort(kept, axis=0)
    for rank in (0, 1, count // 2, count - 1):
        got = order_statistic(jnp.asarray(x), rank, axes)
        assert got.shape == tuple(1 if k in axes else n for k, n in enumerate(x.shape))
        np.testing.assert_array_equal(np.ravel(got), want[rank])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("name", ["normal", "with ties"])
def test_quantiles_are_numpys(name: str, share: float, wide: bool) -> None:
    with jax.enable_x64(wide):
        x = jnp.asarray(ARRAYS[name], jnp.float64 if wide else jnp.float32)
        got = quantile(x, share, (0, 1))
        assert got.dtype == x.dtype
        want = np.quantile(np.asarray(x), share, (0, 1), keepdims=True)
        np.testing.assert_allclose(got, want, rtol=1e-12 if wide else 1e-5, atol=1e-12)
