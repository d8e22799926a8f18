"""`solve` against an independent NumPy implementation of the paper, on random chains."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, Site, Spec

sys.path.insert(0, str(Path(__file__).parent))

from reference import Pair, equalized

TOL = 2e-6


def spec_of(pairs: list[Pair], weights: dict[str, np.ndarray]) -> Spec:
    groups = []
    for pair in pairs:
        sites = [Site(pair.first, (pair.axis,))]
        sites += [Site(pair.bias, (0,))] if pair.bias else []
        sites += [Site(pair.second, (pair.other_axis,), -1)]
        size = weights[pair.first].shape[pair.axis]
        groups.append(Group(f"{pair.first} -> {pair.second}", (size,), tuple(sites)))
    return Spec(tuple(groups))


def chain(widths: list[int], seed: int) -> tuple[dict[str, np.ndarray], list[Pair]]:
    """Dense layers whose channels differ by some octaves."""
    rng = np.random.default_rng(seed)
    weights = {}
    for number, (rows, columns) in enumerate(pairwise(widths)):
        spread = np.exp2(rng.normal(size=columns))
        weights[f"w{number}"] = (rng.normal(size=(rows, columns)) * spread).astype(np.float32)
        weights[f"b{number}"] = rng.normal(size=columns).astype(np.float32)
    last = len(widths) - 2
    return weights, [Pair(f"w{i}", 1, f"w{i + 1}", 0, f"b{i}") for i in range(last)]


@pytest.mark.parametrize("widths", [[3, 8, 4], [5, 7, 9, 6, 8, 3], [20, 40, 33, 24, 50, 10]])
@pytest.mark.parametrize("seed", range(3))
def test_chains_reach_the_fixed_point_of_the_paper(widths, seed):
    weights, pairs = chain(widths, seed)
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    after = fc.equalize(params, spec_of(pairs, weights), tol=TOL)
    for name, value in equalized(weights, pairs).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, err_msg=name)


def test_convolutions_with_depthwise_layers_reach_it_too():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 5, 24), "d": (3, 3, 1, 24), "p": (1, 1, 24, 20), "e": (1, 1, 20, 7)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    pairs = [Pair("a", 3, "d", 3), Pair("d", 3, "p", 2), Pair("p", 3, "e", 2)]
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    after = fc.equalize(params, spec_of(pairs, weights), tol=TOL)
    for name, value in equalized(weights, pairs).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, err_msg=name)
