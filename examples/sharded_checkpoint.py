"""Equalizes a sharded checkpoint: no device, and no host of many, ever holds the whole of it.

    python examples/sharded_checkpoint.py [--layers 4] [--width 512] [--folder FOLDER]

A LLaMA-like stack on eight devices, which are threads of the CPU here. The scales are found from
shapes alone, orbax restores each device's share, `equalize` works in its memory, and orbax writes
the shares back. Orbax comes with flax.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import flaxcle as fc

PLACES = {  # the layers are stacked on the first axis of every leaf of a block
    "embed": P("model", "data"),
    "blocks": {
        **{"norm_1": P(), "norm_2": P()},
        **{name: P(None, "data", "model", None) for name in ("q", "k", "v")},
        **{"o": P(None, "model", None, "data"), "down": P(None, "model", "data")},
        **{name: P(None, "data", "model") for name in ("gate", "up")},
    },
    "norm": P(),
    "head": P("data", "model"),
}


def shapes(layers: int, width: int, mesh: Mesh) -> Any:
    """The params as shapes with shardings: nothing is allocated."""
    heads, hidden, vocabulary = 8, 11 * width // 4, 8 * width
    head = (layers, width, heads, width // heads)
    tree = {
        "embed": (vocabulary, width),
        "blocks": {
            **{"norm_1": (layers, width), "norm_2": (layers, width)},
            **{"q": head, "k": head, "v": head, "o": (layers, *head[2:], width)},
            **{"gate": (layers, width, hidden), "up": (layers, width, hidden)},
            **{"down": (layers, hidden, width)},
        },
        "norm": (width,),
        "head": (width, vocabulary),
    }
    placed = lambda place, shape: jax.ShapeDtypeStruct(  # noqa: E731
        shape, jnp.float32, sharding=NamedSharding(mesh, place)
    )
    return jax.tree.map(placed, PLACES, tree, is_leaf=lambda x: isinstance(x, P))


def norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
    h = norm(p["norm_1"], x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5)
    x = x + jnp.einsum("bhts,bshk,hkd->btd", weights, v, p["o"])
    h = norm(p["norm_2"], x)
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None


def network(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits, (batch, time, vocabulary)."""
    x, _ = jax.lax.scan(layer, params["embed"][tokens], params["blocks"])
    return norm(params["norm"], x) @ params["head"]


def draw(tree: Any) -> Any:
    """Weights whose channels differ by octaves, each share drawn where it stays."""

    def one(key: jax.Array, like: Any) -> jax.Array:
        if len(like.shape) == 1:
            return jnp.ones(like.shape)
        first, second = jax.random.split(key)
        channels = jnp.exp2(jax.random.normal(first, like.shape[-1:]))
        return jax.random.normal(second, like.shape) * channels / like.shape[-1] ** 0.5

    leaves, structure = jax.tree.flatten(tree)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)

    @partial(jax.jit, out_shardings=shardings)
    def all_of_them(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(map(one, keys, leaves))

    return all_of_them(jax.random.key(0))


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(layers: int, width: int, folder: Path) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tree = shapes(layers, width, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder / "trained", draw(tree))
    checkpointer.wait_until_finished()

    tokens = jnp.arange(8)[None]
    spec = fc.find_spec(network, tree, tokens)
    equalize = jax.jit(fc.equalize, static_argnums=1, donate_argnums=0, out_shardings=shardings)
    compiled = equalize.lower(tree, spec).compile()

    params = checkpointer.restore(folder / "trained", tree)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    forward = jax.jit(network)
    before, start = forward(params, tokens), peak()
    params = compiled(params)
    after = forward(params, tokens)
    print(f"the checkpoint     {megabytes(whole)} in {len(jax.tree.leaves(tree))} leaves")
    needed = compiled.memory_analysis()
    print(f"a device's share   {megabytes(needed.argument_size_in_bytes)}")
    print(f"  written again    {megabytes(needed.alias_size_in_bytes)} of it")
    print(f"  beside it        {megabytes(needed.temp_size_in_bytes)} while equalizing")
    print(f"the whole process  {megabytes(start)} at its peak before, {megabytes(peak())} after")
    change = float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))
    print(f"change of logits   {change:.1e} of the largest")

    checkpointer.save(folder / "equalized", params)
    checkpointer.wait_until_finished()
    print(f"written to         {folder / 'equalized'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512, help="a multiple of 32")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; a temporary one if none")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    with tempfile.TemporaryDirectory() as temporary:
        run(options.layers, options.width, (options.folder or Path(temporary)).resolve())


if __name__ == "__main__":
    main()
