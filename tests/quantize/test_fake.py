"""The simulation as a function: what it leaves alone, what it composes with, what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import QuantConfig, calibrate, fake_quant
from flaxcle.compare import sqnr
from flaxcle.errors import CalibrationError
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.weights import snap_weight
from zoo import Network, build

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(3, 4, 4)), jnp.float32)
W8A8 = QuantConfig()
FLOAT = QuantConfig(weight_bits=None, act_bits=None)


def quantized(fn: Any, params: Any, inputs: tuple[Any, ...], config: QuantConfig) -> Any:
    calibration = calibrate(fn, params, [inputs], config)
    return jax.jit(fake_quant(fn, config, calibration))(params, *inputs)


def flat(tree: Any) -> np.ndarray:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def assert_close(one: Any, two: Any, rtol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


NETWORKS = ["mlp", "conv1d", "unet", "resnet18_folded_nnx", "scan_remat_stack", "llama", "lstm"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param)


def test_more_bits_tend_to_float(network: Network) -> None:
    clean = flat(jax.jit(network.fn)(network.params, *network.inputs))
    ranges = calibrate(network.fn, network.params, [network.inputs], QuantConfig())
    noise = []
    for bits in (4, 8, 16):
        config = QuantConfig(weight_bits=bits, act_bits=bits)
        out = jax.jit(fake_quant(network.fn, config, ranges))(network.params, *network.inputs)
        noise.append(sqnr(clean, flat(out)))
    assert noise[0] + 6 < noise[1]
    assert noise[1] + 20 < noise[2]
    assert noise[2] > 60


@pytest.mark.parametrize("name", ["mlp", "scan_stack", "cond_branches", "squeeze_excite_nnx"])
def test_without_bits_nothing_changes(name: str) -> None:
    network = build(name)
    (x,) = network.inputs
    calibration = calibrate(network.fn, network.params, [jnp.abs(x), -jnp.abs(x)], FLOAT)
    qfn = fake_quant(network.fn, FLOAT, calibration)
    both = jax.jit(lambda p, x: (qfn(p, x), network.fn(p, x)))
    jax.tree.map(np.testing.assert_array_equal, *both(network.params, x))


def dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p


def test_without_act_bits_only_weights_are_rounded() -> None:
    config = QuantConfig(weight_bits=3, act_bits=None)
    got = quantized(dense, W[0], (X,), config)
    assert_close(got, X @ snap_weight(W[0], config, ()))
    assert not np.allclose(got, X @ W[0])


def test_without_weight_bits_only_activations_are_rounded() -> None:
    config = QuantConfig(weight_bits=None, act_bits=4)
    rounded = snap(X, make_grid(X.min(), X.max(), 4, symmetric=False))
    y = X @ W[0]
    want = snap(rounded @ W[0], make_grid(y.min(), y.max(), 4, symmetric=False))
    assert_close(quantized(dense, W[0], (X,), config), want)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weight_options_reach_the_weight(observer: Any, granularity: Any, symmetric: bool) -> None:
    config = QuantConfig(
        weight_bits=3,
        act_bits=None,
        weight_observer=observer,
        weight_granularity=granularity,
        weight_symmetric=symmetric,
        percentile=90.0,
    )
    assert_close(quantized(dense, W[0], (X,), config), X @ snap_weight(W[0], config, (1,)))


def conv(**options: Any) -> Any:
    def layer(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    return layer


def transposed(transpose_kernel: bool) -> Any:
    def layer(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(
            x,
            w,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=transpose_kernel,
        )

    return layer


IMAGE = (2, 5, 5, 4)
# layer, kernel shape, the kernel's output axes, input shape, the outputs' axes that they become
LAYERS: dict[str, Any] = {
    "dense": (dense, (4, 6), (1,), (8, 4), (1,)),
    "conv": (conv(), (3, 3, 4, 6), (3,), IMAGE, (3,)),
    "depthwise": (conv(feature_group_count=4), (3, 3, 1, 8), (3,), IMAGE, (3,)),
    "grouped": (conv(feature_group_count=2), (3, 3, 2, 6), (3,), IMAGE, (3,)),
    "transposed": (transposed(False), (3, 3, 4, 6), (3,), IMAGE, (3,)),
    "transposed kernel": (transposed(True), (3, 3, 6, 4), (2,), IMAGE, (3,)),
    "dense general": (
        lambda w, x: jnp.einsum("bd,dhk->bhk", x, w),
        (4, 2, 3),
        (1, 2),
        (8, 4),
        (1, 2),
    ),
    "attention output": (
        lambda w, x: jnp.einsum("bhk,hkd->bd", x, w),
        (2, 3, 5),
        (2,),
        (8, 2, 3),
        (1,),
    ),
    "transposed dense": (lambda w, x: x @ w.T, (6, 4), (0,), (8, 4), (1,)),
    "weight on the left": (lambda w, x: (w @ x.T).T, (6, 4), (0,), (8, 4), (1,)),
    "experts": (
        lambda w, x: jnp.einsum("ebd,edf->ebf", x, w),
        (3, 4, 5),
        (0, 2),
        (3, 8, 4),
        (0, 2),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_per_channel_makes_output_channels_independent(name: str) -> None:
    """Powers of two on the output channels commute with rounding, and with nothing coarser."""
    layer, shape, axes, input_shape, out_axes = LAYERS[name]
    w = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    x = jnp.asarray(RNG.normal(size=input_shape), jnp.float32)
    scale = np.exp2(RNG.permutation(np.prod([shape[a] for a in axes])) % 9).astype(np.float32)

    def along(dims: tuple[int, ...], rank: int) -> jax.Array:
        where = [shape[axes[dims.index(k)]] if k in dims else 1 for k in range(rank)]
        return jnp.asarray(scale.reshape(where))

    for granularity, exact in (("per_channel", True), ("per_tensor", False)):
        config = QuantConfig(weight_bits=4, act_bits=None, weight_granularity=granularity)
        plain = quantized(layer, w, (x,), config)
        scaled = quantized(layer, w * along(axes, w.ndim), (x,), config)
        want = plain * along(out_axes, plain.ndim)
        assert np.allclose(scaled, want, rtol=1e-5, atol=1e-5 * np.abs(want).max()) == exact


def block(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w) @ w


def with_jvp(w: jax.Array, x: jax.Array) -> jax.Array:
    call = jax.custom_jvp(block)
    call.defjvp(lambda p, t: jax.jvp(block, p, t))
    return call(w, x)


def with_vjp(w: jax.Array, x: jax.Array) -> jax.Array:
    call = jax.custom_vjp(block)
    call.defvjp(lambda *args: jax.vjp(block, *args), lambda pull, g: pull(g))
    return call(w, x)


WRAPPED = {
    "jit": jax.jit(block),
    "remat": jax.checkpoint(block),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "cond": lambda w, x: jax.lax.cond(w.sum() > -1e9, lambda: block(w, x), lambda: x),
    "scan": lambda w, x: jax.lax.scan(lambda x, w: (block(w, x), None), x, w[None])[0],
    "scan in jit in remat": lambda w, x: jax.checkpoint(jax.jit(WRAPPED["scan"]))(w, x),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_structure_around_layers_does_not_matter(name: str) -> None:
    config = QuantConfig(weight_bits=4, act_bits=4)
    want = quantized(block, W[0], (X,), config)
    assert_close(quantized(WRAPPED[name], W[0], (X,), config), want)
    assert not np.allclose(want, block(W[0], X), rtol=1e-3)


def test_a_scan_equals_its_layers_in_a_row() -> None:
    config = QuantConfig(weight_bits=4, act_bits=4)
    scan = lambda p, x: jax.lax.scan(lambda x, w: (block(w, x), None), x, p)[0]  # noqa: E731
    row = lambda p, x: block(p[2], block(p[1], block(p[0], x)))  # noqa: E731
    with jax.enable_x64(True):  # float32 may round a tie either way
        w, x = (jnp.asarray(np.asarray(leaf), jnp.float64) for leaf in (W, X))
        assert_close(quantized(scan, w, (x,), config), quantized(row, w, (x,), config))


def test_the_body_of_a_while_loop_stays_float() -> None:
    def loop(w: jax.Array, x: jax.Array) -> jax.Array:
        step = lambda state: (state[0] + 1, jnp.tanh(state[1] @ w))  # noqa: E731
        return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]

    y = snap(X, make_grid(X.min(), X.max(), 8, symmetric=False))
    clean, rounded = loop(W[0], X), loop(W[0], y)
    want = snap(rounded, make_grid(clean.min(), clean.max(), 8, symmetric=False))
    assert_close(quantized(loop, W[0], (X,), W8A8), want)


@pytest.mark.parametrize("name", ["mlp", "scan_stack"])
def test_jit_equals_eager(name: str) -> None:
    with jax.enable_x64(True):  # float32 may round a tie either way
        network = build(name)
        params, inputs = jax.tree.map(
            lambda x: x.astype(jnp.float64), (network.params, network.inputs)
        )
        qfn = fake_quant(network.fn, W8A8, calibrate(network.fn, params, [inputs], W8A8))
        assert_close(jax.jit(qfn)(params, *inputs), qfn(params, *inputs), rtol=1e-12)


def test_vmap_over_inputs_and_over_checkpoints() -> None:
    qfn = fake_quant(dense, W8A8, calibrate(dense, W[0], [X], W8A8))
    rows = jax.vmap(qfn, (None, 0))(W[0], X[:, None])
    assert_close(rows[:, 0], qfn(W[0], X))
    many = jax.vmap(qfn, (0, None))(W, X)
    for k in range(3):
        assert_close(many[k], qfn(W[k], X))


def test_calibration_can_be_an_argument_of_jit() -> None:
    calibration = calibrate(dense, W[0], [X], W8A8)
    call = jax.jit(lambda c, p, x: fake_quant(dense, W8A8, c)(p, x))
    assert_close(call(calibration, W[0], X), fake_quant(dense, W8A8, calibration)(W[0], X))


def test_any_batch_size() -> None:
    network = build("resnet18_folded")
    (x,) = network.inputs
    qfn = jax.jit(fake_quant(network.fn, W8A8, calibrate(network.fn, network.params, [x], W8A8)))
    assert_close(qfn(network.params, x[:1]), qfn(network.params, x)[:1], rtol=1e-4)


@pytest.mark.parametrize("name", ["scan_remat_stack", "squeeze_excite", "mlp_nnx", "gru"])
def test_gradients_reach_every_leaf_that_the_functions_do(name: str) -> None:
    """Calibrated on a wider range than it is used on, so that nothing is clipped."""
    network = build(name)
    (x,) = network.inputs
    config = QuantConfig(weight_bits=16, act_bits=16)
    qfn = fake_quant(network.fn, config, calibrate(network.fn, network.params, [x, 2 * x], config))

    def loss(fn: Any, params: Any) -> jax.Array:
        return sum((leaf**2).mean() for leaf in jax.tree.leaves(fn(params, x)))

    grads = jax.jit(lambda p: [jax.grad(partial(loss, fn))(p) for fn in (qfn, network.fn)])
    got, want = grads(network.params)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(one).all()
        assert bool(jnp.any(one != 0)) == bool(jnp.any(two != 0))
    assert sqnr(flat(want), flat(got)) > 20


def test_training_through_the_rounding_lowers_the_loss() -> None:
    config = QuantConfig(weight_bits=3, act_bits=4)
    target = jnp.tanh(X @ W[1])
    fn = lambda p, x: jnp.tanh(x @ p)  # noqa: E731
    qfn = fake_quant(fn, config, calibrate(fn, W[1], [X], config))
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: ((qfn(p, X) - target) ** 2).mean()))
    params, losses = W[0], []
    for _ in range(60):
        loss, grad = value_and_grad(params)
        params, losses = params - 0.5 * grad, [*losses, float(loss)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_half_precision_models(dtype: Any, observer: Any) -> None:
    params, x = W[0].astype(dtype), X.astype(dtype)
    out = quantized(block, params, (x,), QuantConfig(act_observer=observer))
    assert out.dtype == dtype
    assert sqnr(flat(block(params, x)), flat(out)) > 20


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_float64_models(observer: Any) -> None:
    with jax.enable_x64(True):
        params, x = W[0].astype(jnp.float64), X.astype(jnp.float64)
        out = quantized(block, params, (x,), QuantConfig(act_observer=observer))
        assert out.dtype == jnp.float64
        assert sqnr(flat(block(params, x)), flat(out)) > 20


def test_a_calibration_of_another_function_is_an_error() -> None:
    other = calibrate(lambda p, x: x @ p["a"]["w"], {"a": {"w": W[0]}}, [X], W8A8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]["w"]) @ p["b"]["w"]  # noqa: E731
    with pytest.raises(CalibrationError) as error:
        fake_quant(fn, W8A8, other)({"a": {"w": W[0]}, "b": {"w": W[1]}}, X)
    text = str(error.value)
    assert text.startswith("1 quantizers of this function have no calibrated range: ")
    assert "the first is 'b/input'" in text
    assert "What to do: calibrate the same function; ranges exist for 'input_0'" in text


def test_inputs_of_another_structure_are_none_of_its_business() -> None:
    """The function itself says what is wrong with its inputs."""
    qfn = fake_quant(dense, W8A8, calibrate(dense, W[0], [X], W8A8))
    with pytest.raises(TypeError):
        qfn(W[0], X[:, :3])
