"""Donated params: every buffer is used again, and next to nothing is needed beside them.

The weights are shapes, so nothing is allocated: the compiler says what it would need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import flaxcle as fc
from flaxcle import Group, Site, Spec
from flaxcle.solve import maxima
from flaxcle.solve.maxima import TILED

BEYOND_THE_PARAMS = 0.1

LLAMA = {
    **{"norm_1": (1024,), "q": (1024, 8, 128), "k": (1024, 8, 128), "v": (1024, 8, 128)},
    **{"o": (8, 128, 1024), "norm_2": (1024,), "gate": (1024, 2816), "up": (1024, 2816)},
    **{"down": (2816, 1024)},
}
LLAMA_SPEC = Spec(
    (
        Group("norm_1", (1024,), (Site("norm_1", (0,)), *(Site(p, (0,), -1) for p in "qkv"))),
        Group("scores", (8, 128), (Site("q", (1, 2)), Site("k", (1, 2), -1))),
        Group("values", (8, 128), (Site("v", (1, 2)), Site("o", (0, 1), -1))),
        Group(
            "norm_2", (1024,), (Site("norm_2", (0,)), Site("gate", (0,), -1), Site("up", (0,), -1))
        ),
        Group("mlp", (2816,), (Site("up", (1,)), Site("down", (0,), -1))),
    )
)
RESNET = {"reduce": (1, 1, 1024, 256), "conv": (3, 3, 256, 256), "expand": (1, 1, 256, 1024)}
RESNET_SPEC = Spec(
    (
        Group("reduce", (256,), (Site("reduce", (3,)), Site("conv", (2,), -1))),
        Group("conv", (256,), (Site("conv", (3,)), Site("expand", (2,), -1))),
    )
)
STREAM, HIDDEN, BLOCKS = 256, 1024, 2
BLOCK = {"up": (1, 1, STREAM, HIDDEN), "dw": (3, 3, 1, HIDDEN), "down": (1, 1, HIDDEN, STREAM)}
MOBILE = {f"{name}{k}": shape for k in range(BLOCKS) for name, shape in BLOCK.items()}
MOBILE_SPEC = Spec(
    (
        Group(
            "stream",
            (STREAM,),
            tuple(
                site
                for k in range(BLOCKS)
                for site in (Site(f"up{k}", (2,), -1), Site(f"down{k}", (3,)))
            ),
        ),
        *(
            Group(f"{made}{k}", (HIDDEN,), (Site(f"{made}{k}", (3,)), Site(f"{read}{k}", axes, -1)))
            for k in range(BLOCKS)
            for made, read, axes in (("up", "dw", (3,)), ("dw", "down", (2,)))
        ),
    )
)


@pytest.fixture
def as_users_compile() -> Iterator[None]:
    """With the optimizations that the test suite leaves out, for they save the memory."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("tiled", [TILED, 2**18], ids=("reduced", "tiled"))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("shapes", "spec"), [(LLAMA, LLAMA_SPEC), (RESNET, RESNET_SPEC)], ids=("llama", "resnet")
)
def test_donated_params_are_their_own_memory(shapes, spec, dtype, tiled, monkeypatch):
    monkeypatch.setattr(maxima, "TILED", tiled)
    monkeypatch.setattr(maxima, "TILE", 2**14)
    jax.clear_caches()  # inner functions may have been traced with another size
    needed, own = memory_of(shapes, spec, dtype)
    assert needed.alias_size_in_bytes == own
    assert needed.temp_size_in_bytes <= BEYOND_THE_PARAMS * own


@pytest.mark.usefixtures("as_users_compile")
def test_what_the_solver_remembers_is_little_beside_narrow_blocks():
    needed, own = memory_of(MOBILE, MOBILE_SPEC, jnp.float32)
    assert needed.temp_size_in_bytes <= BEYOND_THE_PARAMS * own


def memory_of(shapes: dict[str, tuple[int, ...]], spec: Spec, dtype: Any) -> tuple[Any, int]:
    """What a donating call needs, and the bytes of the params."""
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    donating = jax.jit(fc.equalize, static_argnums=1, donate_argnums=0)
    needed = donating.lower(params, spec).compile().memory_analysis()
    own = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in params.values())
    return needed, own
