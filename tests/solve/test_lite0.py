"""Every pair of EfficientNet-Lite0 against Nagel's algorithm in NumPy float64."""

from __future__ import annotations

import jax
import numpy as np

import flaxcle as fc
from flaxcle.paths import map_named, named_leaves
from lite0 import PAIRS, Lite0
from solve.reference import Pair, equalized


def _variables():
    """Lite0's tree with kernels whose channels spread over three octaves."""
    shapes = jax.eval_shape(Lite0().init, jax.random.key(0), np.ones((1, 33, 33, 3), np.float32))
    rng = np.random.default_rng(0)

    def draw(path: str, leaf):
        spread = np.exp2(rng.uniform(-1.5, 1.5, leaf.shape[-1]))
        value = rng.normal(size=leaf.shape) * (spread if len(leaf.shape) > 1 else 1)
        return (np.abs(value) + 0.1 if "var" in path else value).astype(np.float32)

    return map_named(draw, shapes)


def _pair(group: fc.Group, kernels: dict[str, np.ndarray]) -> Pair:
    first = next(site for site in group.producers if site.path in kernels)
    second = next(site for site in group.consumers if site.path in kernels)
    return Pair(first.path, first.axes[0], second.path, second.axes[0])


def test_all_pairs_of_lite0_equal_the_reference():
    variables = _variables()
    spec = fc.Spec.from_pairs(PAIRS, variables)
    leaves = named_leaves(fc.equalize(variables, spec, tol=1e-6, max_scale=2.0**30))
    kernels = {p: v for p, v in named_leaves(variables).items() if p.endswith("/kernel")}
    expected = equalized(kernels, [_pair(group, kernels) for group in spec.groups])
    assert len(spec.groups) == 35
    for path, kernel in expected.items():
        error = np.abs(np.asarray(leaves[path], np.float64) - kernel).max() / np.abs(kernel).max()
        assert error < 1e-5, path
