"""Networks with weights and groups, for the timings: as users have them before `equalize`.

Weights are random but for Lite0's: kernels of He's variance, each channel from 0.1 to 10 times as
large, as trained networks have them. Norms are folded and clips exposed. The same name gives the
same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from big_networks import NETWORKS, Network, llama

import flaxcle as fc
from flaxcle.paths import map_named, named_leaves

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "fashion_mnist"))

from imagenet import imagenet_variables
from lite0 import Lite0

WIDTH, HEADS, HIDDEN, VOCABULARY = 4096, 32, 11008, 256
CHECKPOINTS = 64


@dataclass(frozen=True)
class Workload:
    """A network to equalize.

    Attributes:
        fn: the function.
        params: arrays of the dtype asked for.
        spec: as `find_spec` gives it; groups of residual sums are held.
        inputs: the shape of an input.
        checkpoints: length of the leading axis that `vmap` maps over; 0 for none.
    """

    fn: Callable[..., Any]
    params: Any
    spec: fc.Spec
    inputs: jax.ShapeDtypeStruct
    checkpoints: int = 0

    @property
    def residual(self) -> fc.Spec:
        """The groups of residual sums move, too.

        Not those of a kernel and its norm: once folded, norms are gone on the device.
        """
        ranks = {path: jnp.ndim(leaf) for path, leaf in named_leaves(self.params).items()}
        reads = lambda site: site.power < 0 and ranks[site.path] > 1  # noqa: E731
        names = [group.name for group in self.spec.groups if any(map(reads, group.sites))]
        return self.spec.select(*names)

    @property
    def leaves(self) -> list[jax.Array]:
        """All params."""
        return jax.tree.leaves(self.params)


def drawn(shapes: Any) -> Any:
    """Random params; norms keep theirs positive."""
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> jax.Array:
        shape, name = leaf.shape, path.rpartition("/")[2]
        if name in ("scale", "var") or "norm" in name:
            return jnp.asarray(rng.uniform(0.5, 2.0, shape), leaf.dtype)
        spread = 10 ** rng.uniform(-1, 1, shape[-1:]).astype(np.float32)
        size = spread * np.sqrt(2 / max(np.prod(shape[:-1]), 1), dtype=np.float32)
        return jnp.asarray(rng.standard_normal(shape, np.float32) * size, leaf.dtype)

    return map_named(draw, shapes)


def made(network: Network, dtype: Any, checkpoints: int = 0) -> Workload:
    """A network with random weights."""
    fn, shapes, x = network
    return prepared(fn, drawn(shapes), x, dtype, checkpoints)


def prepared(
    fn: Callable[..., Any], params: Any, x: Any, dtype: Any, checkpoints: int = 0
) -> Workload:
    """A network with its norms folded, and its groups."""
    if "batch_stats" in params:
        params = fc.fold_batch_norm(fn, params, x)
    fn, params = fc.expose_clips(fn, params, x)
    spec = fc.find_spec(fn, params, x)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    if checkpoints:
        rates = jnp.linspace(0.5, 1.5, checkpoints).astype(dtype)
        scaled = lambda leaf: jnp.tensordot(rates, leaf, 0)  # noqa: E731
        params = jax.tree.map(scaled, params)
    return Workload(fn, params, spec, x, checkpoints)


def lite0(dtype: Any, checkpoints: int = 0) -> Workload:
    """With its ImageNet weights."""
    variables = jax.tree.map(jnp.asarray, imagenet_variables())
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return prepared(Lite0().apply, variables, image, dtype, checkpoints)


def llama_like(layers: int, dtype: Any, scanned: bool) -> Workload:
    """Blocks as in a LLaMA of 7 billion parameters, hardly any vocabulary."""
    return made(llama(layers, WIDTH, HEADS, HEADS, HIDDEN, scanned, VOCABULARY), dtype)


def workloads(layers: int) -> dict[str, Callable[[Any], Workload]]:
    """Name -> what makes it with weights of a dtype."""
    named = ("mobilenet_v2", "resnet50", "resnet152", "vit_b16", "gpt2")
    plain = {name: lambda dtype, name=name: made(NETWORKS[name](), dtype) for name in named}
    return {
        **{"lite0": lite0},
        **plain,
        "llama_like": lambda dtype: llama_like(layers, dtype, scanned=False),
        "llama_like_scanned": lambda dtype: llama_like(layers, dtype, scanned=True),
        f"mobilenet_v2_x{CHECKPOINTS}": lambda dtype: made(
            NETWORKS["mobilenet_v2"](), dtype, CHECKPOINTS
        ),
    }
