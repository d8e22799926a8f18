"""`shard_map` and ragged products: scales stay with the channels, wherever the device is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import flaxcle as fc
from by_hand import assert_preserved
from zoo.base import draw, image

P = PartitionSpec
X = image(4, 3)


def drawn(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return draw("shards", {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


def mapped(body: Callable[..., jax.Array], second: PartitionSpec, out: PartitionSpec) -> Any:
    """The body on a mesh of 2 x 2 devices: data and model."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = (P("data"), P(None, "model"), second)
    inside = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=out)
    return lambda p, x: inside(x, p["a"], p["b"])


def hidden(x: jax.Array, a: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ a)


def summed(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.psum(hidden(x, a) @ b, "model")


def gathered(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.all_gather(hidden(x, a), "model", axis=1, tiled=True) @ b


def stacked(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    parts = lax.all_gather(hidden(x, a), "model")
    return jnp.concatenate([parts[0], parts[1]], axis=1) @ b


def passed(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.psum(lax.ppermute(hidden(x, a), "model", [(0, 1), (1, 0)]) @ b, "model")


def largest(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.pmax(hidden(x, a), "model") @ b


def averaged_batch(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    mean = lax.pmean(jnp.mean(hidden(x, a), axis=0, keepdims=True), "data")
    return lax.psum((hidden(x, a) - mean) @ b, "model")


WHOLE, ROWS, COLUMNS = P("data"), P("model"), P(None, "model")
FOUND = {
    "summed": (summed, ROWS, WHOLE, 6),
    "gathered": (gathered, COLUMNS, P("data", "model"), 6),
    "stacked": (stacked, COLUMNS, P("data", "model"), 6),
    "passed": (passed, ROWS, WHOLE, 6),
    "averaged_batch": (averaged_batch, ROWS, WHOLE, 6),
}


@pytest.mark.parametrize(("body", "second", "out", "scales"), FOUND.values(), ids=FOUND)
def test_every_channel_keeps_its_scale_on_its_device(body, second, out, scales):
    fn, params = mapped(body, second, out), drawn(a=(3, 6), b=(6, 4))
    spec = fc.find_spec(fn, params, X)
    assert spec.scales == scales
    assert_preserved(fn, params, spec, X, exact=False)


def test_channels_of_which_the_largest_counts_share_a_scale():
    """Channel c of one device meets channel c of the other: three scales for six channels."""
    fn, params = mapped(largest, COLUMNS, P("data", "model")), drawn(a=(3, 6), b=(3, 4))
    spec = fc.find_spec(fn, params, X)
    assert spec.scales == 3
    assert_preserved(fn, params, spec, X)


def test_a_collective_without_a_rule_blocks_with_its_name():
    def body(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        h = lax.all_to_all(hidden(x, a), "model", 0, 1, tiled=True)
        return lax.psum(lax.all_to_all(h, "model", 1, 0, tiled=True) @ b, "model")

    spec = fc.find_spec(mapped(body, ROWS, WHOLE), drawn(a=(3, 6), b=(6, 4)), X)
    assert not spec.groups
    (reason,) = {row.reason for row in spec.blocked if row.path == "a"}
    assert reason == "no rule says how a scale passes 'all_to_all'"


def test_experts_of_a_ragged_product_share_the_scales_of_their_channels():
    def fn(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        sizes = jnp.array([2, 1, 1])
        return lax.ragged_dot(hidden_of(p, x, sizes), p["down"], sizes)

    def hidden_of(p: dict[str, jax.Array], x: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.nn.relu(lax.ragged_dot(x, p["up"], sizes))

    params = drawn(up=(3, 3, 5), down=(3, 5, 4))
    spec = fc.find_spec(fn, params, X)
    (group,) = spec.groups
    assert {(s.path, s.axes, s.power) for s in group.sites} == {("up", (2,), 1), ("down", (1,), -1)}
    assert_preserved(fn, params, spec, X)
