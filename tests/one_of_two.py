"""One of two processes that hold a network together: `python one_of_two.py ADDRESS NUMBER`."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flaxcle as fc
from flaxcle import Group, Site, Spec

# leaf: its shape and placement; neither process holds the whole of any of them but the bias
LEAVES = {
    "up": ((32, 64), P("hosts", "local")),
    "bias": ((64,), P()),
    "down": ((64, 48), P(("hosts", "local"), None)),
    "head": ((48, 32), P(None, ("hosts", "local"))),
}
SPEC = Spec(
    (
        Group("mlp", (64,), (Site("up", (1,)), Site("bias", (0,)), Site("down", (0,), -1))),
        Group("head", (48,), (Site("down", (1,)), Site("head", (0,), -1))),
    )
)


def spread(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array of which every process holds its part."""

    def own(index: tuple[slice, ...] | None) -> np.ndarray:
        return values[index].copy()  # devices would share the memory of a view, and donate it twice

    return jax.make_array_from_callback(values.shape, sharding, own)


def check_equal(found: dict[str, jax.Array], wanted: dict[str, Any]) -> None:
    for path, leaf in found.items():
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(wanted[path])[shard.index])


def check(address: str, number: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, number)
    rng = np.random.default_rng(0)
    values = {
        path: (rng.normal(size=shape) * np.exp2(2 * rng.normal(size=shape))).astype(np.float32)
        for path, (shape, _) in LEAVES.items()
    }
    mesh = jax.make_mesh((2, 2), ("hosts", "local"), axis_types=(AxisType.Auto,) * 2)
    shardings = {path: NamedSharding(mesh, place) for path, (_, place) in LEAVES.items()}
    params = jax.tree.map(spread, values, shardings)
    assert not any(params[path].is_fully_addressable for path in LEAVES)
    wanted = fc.equalize(values, SPEC)

    eager = fc.equalize(params, SPEC)
    check_equal(eager, wanted)
    assert {path: leaf.sharding for path, leaf in eager.items()} == shardings
    scales = fc.solve(params, SPEC)
    assert all(log2.is_fully_replicated for log2 in scales.log2.values())
    check_equal(scales.log2, fc.solve(values, SPEC).log2)

    values["down"][0, 0] = np.nan
    broken = params | {"down": spread(values["down"], shardings["down"])}
    with pytest.raises(fc.errors.WeightError, match="'down'"):
        fc.equalize(broken, SPEC)

    jitted = jax.jit(fc.equalize, static_argnums=1, donate_argnums=0, out_shardings=shardings)
    check_equal(jitted(params, SPEC), wanted)
    assert all(leaf.is_deleted() for leaf in params.values())


if __name__ == "__main__":
    check(sys.argv[1], int(sys.argv[2]))
