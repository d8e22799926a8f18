"""What is found on real architectures equals what a person declares, group by group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxcle as fc
from by_hand import table_of
from flaxcle.paths import map_named, named_leaves
from lite0 import PAIRS, Lite0

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from big_networks import resnet


def drawn(shapes: Any) -> Any:
    """Kernels whose channels spread over three octaves; variances that are positive."""
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> jax.Array:
        spread = np.exp2(rng.uniform(-1.5, 1.5, leaf.shape[-1]))
        value = rng.normal(size=leaf.shape) * (spread if len(leaf.shape) > 1 else 1)
        return jnp.asarray(np.abs(value) + 0.1 if path.endswith("/var") else value, jnp.float32)

    return map_named(draw, shapes)


def assert_same(params: Any, found: fc.Spec, declared: fc.Spec) -> None:
    """The groups that move are the declared ones, and so is what `equalize` makes of them."""
    shapes = {path: leaf.shape for path, leaf in named_leaves(params).items()}
    moving = [group for group in found.groups if not group.held]
    tables = {table_of(group, shapes) for group in declared.groups}
    assert {table_of(group, shapes) for group in moving} == tables
    one, two = (named_leaves(fc.equalize(params, spec, tol=1e-6)) for spec in (found, declared))
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-5, err_msg=path)


def test_lite0():
    x = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    variables = drawn(jax.eval_shape(Lite0().init, jax.random.key(0), x))
    folded = fc.fold_batch_norm(Lite0().apply, variables, x)
    fn, exposed = fc.expose_clips(Lite0().apply, folded, x)
    declared = fc.Spec.from_pairs(PAIRS, exposed)
    assert len(declared.groups) == 35
    assert_same(exposed, fc.find_spec(fn, exposed, x), declared)


def test_resnet50():
    fn, shapes, x = resnet(3, 4, 6, 3)
    variables = drawn(shapes)
    chain = ("Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1", "Conv_2")
    blocks = [f"Bottleneck_{i}" for i in range(16)]
    pairs = [tuple(f"{block}/{layer}" for layer in chain) for block in blocks]
    pairs.append(("Conv_0", "BatchNorm_0", ("Bottleneck_0/Conv_0", "Bottleneck_0/Conv_3")))
    declared = fc.Spec.from_pairs(pairs, variables)
    assert len(declared.groups) == 33
    assert_same(variables, fc.find_spec(fn, variables, x), declared)
