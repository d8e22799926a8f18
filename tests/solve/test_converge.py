"""How the fixed point is reached: counts that are deterministic, and what may never happen."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, Site, Spec
from flaxcle.solve import layout

LIMIT = np.log2(1 + 1e-3)


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draws = {n: rng.normal(size=s) * np.exp2(rng.normal(size=s[-1])) for n, s in shapes.items()}
    return {name: jnp.asarray(draw, jnp.float32) for name, draw in draws.items()}


def chain(layers: int, width: int) -> tuple[dict[str, jax.Array], Spec]:
    params = weights(layers, **{f"w{i}": (width, width) for i in range(layers)})
    pairs = [(Site(f"w{i}", (1,)), Site(f"w{i + 1}", (0,), -1)) for i in range(layers - 1)]
    return params, Spec(tuple(Group(f"g{i}", (width,), pair) for i, pair in enumerate(pairs)))


def residual_net(blocks: int, stream: int, width: int) -> tuple[dict[str, jax.Array], Spec]:
    """A stem, blocks of two layers beside the stream, and a head: all groups move."""
    shapes = {"stem": (3, stream), "head": (stream, 10)}
    shapes |= {f"up{i}": (stream, width) for i in range(blocks)}
    shapes |= {f"down{i}": (width, stream) for i in range(blocks)}
    made = [Site(name, (1,)) for name in ("stem", *(f"down{i}" for i in range(blocks)))]
    read = [Site(name, (0,), -1) for name in ("head", *(f"up{i}" for i in range(blocks)))]
    groups = [Group("stream", (stream,), (*made, *read))]
    for i in range(blocks):
        pair = (Site(f"up{i}", (1,)), Site(f"down{i}", (0,), -1))
        groups.append(Group(f"block {i}", (width,), pair))
    return weights(blocks, **shapes), Spec(tuple(groups))


@pytest.mark.parametrize(("layers", "width"), [(3, 8), (6, 40), (12, 40), (24, 40)])
def test_long_chains_need_few_readings_of_the_weights(layers, width):
    params, spec = chain(layers, width)
    scales = fc.solve(params, spec)
    assert scales.residual <= LIMIT
    assert scales.sweeps <= 12


@pytest.mark.parametrize(("blocks", "width"), [(2, 8), (8, 48), (16, 48)])
def test_residual_groups_need_few_readings_too(blocks, width):
    params, spec = residual_net(blocks, 32, width)
    scales = fc.solve(params, spec)
    assert scales.residual <= LIMIT
    assert scales.sweeps <= 14


def test_the_residual_is_what_a_plain_sweep_would_change():
    params, spec = chain(5, 24)
    scales = fc.solve(params, spec, max_sweeps=3)
    moved = fc.apply_scales(params, scales, spec)
    change = max(
        np.abs(np.log2(np.abs(moved[f"w{i + 1}"]).max(1) / np.abs(moved[f"w{i}"]).max(0))).max() / 2
        for i in range(4)
    )
    assert scales.residual == pytest.approx(change, rel=1e-3)
    assert scales.residual > LIMIT


def test_more_sweeps_never_leave_a_larger_residual():
    params, spec = residual_net(8, 32, 48)
    found = [fc.solve(params, spec, max_sweeps=n, tol=1e-6) for n in range(1, 12)]
    assert [scales.sweeps for scales in found[:4]] == [1, 2, 3, 4]
    assert all(later.residual <= earlier.residual for earlier, later in pairwise(found))


def test_one_sweep_measures_the_net_as_it_is():
    params, spec = chain(4, 40)
    scales = fc.solve(params, spec, max_sweeps=1)
    assert all((log2 == 0).all() for log2 in scales.log2.values())
    peaks = [np.log2(np.abs(params[f"w{i}"])) for i in range(4)]
    moves = [(peaks[i + 1].max(1) - peaks[i].max(0)) / 2 for i in range(3)]
    assert scales.residual == pytest.approx(np.abs(moves).max(), rel=1e-5)


def test_a_balanced_net_is_returned_bit_for_bit():
    params, spec = chain(4, 40)
    once = fc.equalize(params, spec)
    scales = fc.solve(once, spec, tol=1e-2)
    assert scales.sweeps == 1
    jax.tree.map(np.testing.assert_array_equal, fc.equalize(once, spec, tol=1e-2), once)


@pytest.mark.parametrize("make", [lambda: chain(6, 14), lambda: residual_net(4, 12, 16)])
def test_listing_and_searching_find_the_same_point(make, monkeypatch):
    params, spec = make()
    listed = fc.solve(params, spec, tol=1e-6)
    monkeypatch.setattr(layout, "LISTED", 1)
    renamed = Spec(tuple(Group(f"{g.name}'", g.shape, g.sites) for g in spec.groups))
    searched = fc.solve(params, renamed, tol=1e-6)
    assert searched.sweeps > listed.sweeps
    for group in spec.groups:
        one, two = listed.log2[group.name], searched.log2[f"{group.name}'"]
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_grouped_kernels_and_flattened_ones_are_searched_alike(monkeypatch):
    """Channels that stand at several positions, on axes that two scales share."""
    monkeypatch.setattr(layout, "LISTED", 1)
    params = weights(0, a=(3, 3, 4, 6), g=(3, 3, 3, 8), d=(5 * 8, 9), e=(9, 4))
    into = (np.arange(8) // 4)[None] * 3 + np.arange(3)[:, None]
    tiled = np.tile(np.arange(8), 5)
    groups = (
        Group("one", (6,), (Site("a", (3,)), Site("g", (2, 3), -1, into))),
        Group("two", (8,), (Site("g", (3,)), Site("d", (0,), -1, tiled))),
        Group("three", (9,), (Site("d", (1,)), Site("e", (0,), -1))),
    )
    after = fc.equalize(params, Spec(groups), tol=1e-5)
    size = {name: np.abs(np.asarray(leaf)) for name, leaf in after.items()}
    grouped = size["g"].max((0, 1))
    read = [grouped[i, 4 * k : 4 * k + 4].max() for k in range(2) for i in range(3)]
    np.testing.assert_allclose(size["a"].max((0, 1, 2)), read, rtol=1e-4)
    np.testing.assert_allclose(grouped.max(0), size["d"].reshape(5, 8, 9).max((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(size["d"].max(0), size["e"].max(1), rtol=1e-4)


def test_stacked_layers_balance_as_if_they_were_apart():
    """Scales of shape (layers, channels), as `nn.scan` has them, share an axis of the kernels."""
    stacked = weights(0, up=(3, 20, 24), down=(3, 24, 20))
    group = Group("h", (3, 24), (Site("up", (0, 2)), Site("down", (0, 1), -1)))
    after = fc.equalize(stacked, Spec((group,)))
    pair = Spec((Group("h", (24,), (Site("up", (1,)), Site("down", (0,), -1))),))
    for layer in range(3):
        alone = fc.equalize(jax.tree.map(lambda leaf, i=layer: leaf[i], stacked), pair)
        for name in alone:
            np.testing.assert_allclose(after[name][layer], alone[name], rtol=1e-6)


def test_scales_stay_within_bounds_while_others_move_on():
    params, spec = chain(4, 40)
    params["w0"] = params["w0"] * jnp.where(jnp.arange(40) == 0, 1e4, 1.0)[None]
    scales = fc.solve(params, spec, max_scale=4.0)
    assert scales.residual <= LIMIT
    assert max(np.abs(log2).max() for log2 in scales.log2.values()) == 2.0


def test_a_new_number_compiles_nothing():
    params, spec = chain(3, 8)
    fc.solve(params, spec)
    with jax.log_compiles(), NoCompilation():
        fc.solve(params, spec, tol=1e-2, alpha=0.4, max_scale=8.0, max_sweeps=7, power_of_two=True)


class NoCompilation:
    """Fails when anything is compiled inside."""

    def __enter__(self) -> None:
        self._events: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)
        assert not [event for event in self._events if "backend_compile" in event]

    def _hear(self, event: str, duration: float, **_: Any) -> None:
        self._events.append(event)
