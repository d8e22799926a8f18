"""On a mesh: shardings stay, no weight travels, the bits are those of one device."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flaxcle as fc
from collectives import collectives
from flaxcle import Group, Site, Spec

BOTH = ("data", "model")

# leaf: its shape, its tensor-parallel placement, its FSDP placement
LEAVES = {
    "embed": ((512, 64), P("model", "data"), P(BOTH, None)),
    "norm": ((64,), P(), P("data")),
    "q": ((64, 8, 16), P("data", "model", None), P(BOTH, None, None)),
    "k": ((64, 8, 16), P("data", "model", None), P(None, None, BOTH)),
    "v": ((64, 8, 16), P("data", "model", None), P(None, BOTH, None)),
    "o": ((8, 16, 64), P("model", None, "data"), P(None, None, BOTH)),
    "up": ((64, 128), P("data", "model"), P(BOTH, None)),
    "up_bias": ((128,), P("model"), P()),
    "down": ((128, 96), P("model", "data"), P(None, BOTH)),
    "dense": ((96, 128), P("data", "model"), P(BOTH, None)),
    "head": ((128, 64), P("data", "model"), P(None, BOTH)),
    "conv_0": ((3, 3, 64, 64), P(None, None, "data", "model"), P(None, None, BOTH, None)),
    "conv_1": ((3, 3, 64, 64), P(None, None, "data", "model"), P(None, None, None, BOTH)),
    "conv_2": ((1, 1, 64, 128), P(None, None, "data", "model"), P(None, None, BOTH, None)),
    "stack_up": ((4, 32, 64), P(None, "data", "model"), P("model", "data", None)),
    "stack_down": ((4, 64, 32), P(None, "model", "data"), P("data", None, "model")),
}
SPEC = Spec(
    (
        Group("embed", (64,), (Site("embed", (1,)), Site("norm", (0,), -1))),
        Group("norm", (64,), (Site("norm", (0,)), *(Site(p, (0,), -1) for p in ("q", "k", "v")))),
        Group("scores", (8, 16), (Site("q", (1, 2)), Site("k", (1, 2), -1))),
        Group("values", (8, 16), (Site("v", (1, 2)), Site("o", (0, 1), -1))),
        Group("mlp", (128,), (Site("up", (1,)), Site("up_bias", (0,)), Site("down", (0,), -1))),
        Group("dense", (96,), (Site("down", (1,)), Site("dense", (0,), -1))),
        Group("head", (128,), (Site("dense", (1,)), Site("head", (0,), -1))),
        Group("conv_0", (64,), (Site("conv_0", (3,)), Site("conv_1", (2,), -1))),
        Group("conv_1", (64,), (Site("conv_1", (3,)), Site("conv_2", (2,), -1))),
        Group("stack", (4, 64), (Site("stack_up", (0, 2)), Site("stack_down", (0, 1), -1))),
    )
)
LONGEST = max(group.size for group in SPEC.groups)


@cache
def drawn() -> dict[str, np.ndarray]:
    """Weights whose channels differ by octaves, the same on every call."""
    rng = np.random.default_rng(0)
    spread = lambda shape: np.exp2(2 * rng.normal(size=shape))  # noqa: E731
    return {
        path: (rng.normal(size=shape) * spread(shape)).astype(np.float32)
        for path, (shape, *_) in LEAVES.items()
    }


@cache
def on_one_device() -> tuple[fc.Scales, dict[str, Any]]:
    params = jax.tree.map(jnp.asarray, drawn())
    scales = fc.solve(params, SPEC)
    return scales, fc.apply_scales(params, scales, SPEC)


def placements(axis_type: AxisType, which: int) -> dict[str, NamedSharding]:
    mesh = jax.make_mesh((2, 4), BOTH, axis_types=(axis_type,) * 2)
    return {path: NamedSharding(mesh, row[1 + which]) for path, row in LEAVES.items()}


def solved_and_applied(params: Any) -> tuple[fc.Scales, Any]:
    scales = fc.solve(params, SPEC)
    return scales, fc.apply_scales(params, scales, SPEC)


def assert_same_bits(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("axis_type", "which"),
    [(AxisType.Auto, 0), (AxisType.Auto, 1), (AxisType.Explicit, 1)],
    ids=["auto-tensor_parallel", "auto-fsdp", "explicit-fsdp"],
)
def test_under_jit_no_weight_travels(axis_type, which):
    shardings = placements(axis_type, which)
    params = jax.device_put(drawn(), shardings)
    jitted = jax.jit(solved_and_applied, out_shardings=(None, shardings), donate_argnums=0)
    compiled = jitted.lower(params).compile()
    messages = collectives(compiled)
    assert max(message.elements for message in messages) <= LONGEST
    assert {message.kind for message in messages} <= {"all-gather", "all-reduce", "all-to-all"}
    shards = {path: leaf.addressable_shards[0].data for path, leaf in params.items()}
    assert min(shard.size for shard in shards.values() if shard.ndim > 1) > LONGEST
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased == sum(shard.nbytes for shard in shards.values())
    scales, equalized = compiled(params)
    assert_same_bits((scales, equalized), on_one_device())
    for path, leaf in equalized.items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path


def test_the_reader_of_messages_sees_a_gathered_weight():
    shardings = placements(AxisType.Auto, 0)
    weight = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=shardings["up"])
    whole = NamedSharding(weight.sharding.mesh, P())
    gathered = jax.jit(jnp.abs, out_shardings=whole).lower(weight).compile()
    assert max(message.elements for message in collectives(gathered)) == 64 * 128
    summed = jax.jit(jnp.sum).lower(weight).compile()
    assert {tuple(message) for message in collectives(summed)} == {("all-reduce", 1)}
