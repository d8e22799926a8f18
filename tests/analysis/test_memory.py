"""Bytes: what the table adds up to, and what integers save."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.jaxpr import trace
from flaxcle.quantize.plan import make_plan
from zoo import networks

CONFIG = fc.QuantConfig()


def net(params, x):
    h = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
    return h + h @ params["b"]["kernel"]


PARAMS = {
    "a": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones((1, 6))},
    "b": {"kernel": jnp.ones((6, 6))},
}
X = jnp.ones((5, 8))


def test_bytes_by_hand():
    rows = [tuple(row.values()) for row in fc.memory_table(net, PARAMS, CONFIG, X)]
    assert rows == [
        ("a", 4 * 48 + 24, 48 + 24, 4 * 5 * (8 + 6), 5 * (8 + 6)),
        ("b", 4 * 36, 36, 4 * 5 * (6 + 6), 5 * (6 + 6)),
        ("add", 0, 0, 4 * 5 * 18, 5 * 18),
        ("(all)", 360, 108, 880, 220),
    ]


@pytest.mark.parametrize("name", ["squeeze_excite", "gpt2", "llama_scan_remat", "embed_dense"])
def test_float_weights_are_the_bytes_of_the_leaves(name):
    network = networks()[name]()
    table = fc.memory_table(network.fn, network.params, CONFIG, *network.inputs)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(network.params)]
    columns = np.array([list(row.values())[1:] for row in table])
    assert columns[-1, 0] == sum(leaf.nbytes for leaf in leaves)
    np.testing.assert_array_equal(columns[:-1].sum(0), columns[-1])
    program = trace(network.fn, network.params, *network.inputs)
    rounded = {fact.leaf for _, _, fact in make_plan(program).weights()}
    saved = sum(3 * int(np.prod(program.params[path].shape)) for path in rounded)
    assert columns[-1, 0] - columns[-1, 1] == saved > 0


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda *tree: tree, PARAMS, X)
    assert fc.memory_table(net, shapes[0], CONFIG, shapes[1]) == fc.memory_table(
        net, PARAMS, CONFIG, X
    )


@pytest.mark.parametrize(("bits", "share"), [(4, 0.125), (8, 0.25), (16, 0.5), (None, 1)])
def test_bits_decide(bits, share):
    config = fc.QuantConfig(weight_bits=bits, act_bits=bits)
    row = list(fc.memory_table(net, PARAMS, config, X))[1]
    assert row["weights int B"] == share * row["weights float B"]
    assert row["activations int B"] == share * row["activations float B"]


def test_halves_of_bytes_are_rounded_up():
    fn, params = lambda p, x: x @ p["kernel"], {"kernel": jnp.ones((3, 1))}
    table = fc.memory_table(fn, params, fc.QuantConfig(weight_bits=4), jnp.ones((1, 3)))
    assert table.column("weights int B") == [2, 2]


def test_all_turns_of_a_scan_count():
    def scanned(params, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0]

    def unrolled(params, x):
        for k in range(3):
            x = jnp.tanh(x @ params[f"w{k}"])
        return x

    w, x = jnp.ones((3, 4, 4)), jnp.ones((2, 4))
    one = fc.memory_table(scanned, {"w": w}, CONFIG, x)
    many = fc.memory_table(unrolled, {f"w{k}": w[k] for k in range(3)}, CONFIG, x)
    assert one.rows[-1] == many.rows[-1]
