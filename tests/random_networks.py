"""Random networks: DAGs of layers and operations on small (batch, length, channels) arrays.

Each step reads earlier values and adds a new one; every layer brings its own params, or borrows
those of an earlier layer. The invariant: a network is a function of its list of steps alone, so
that hypothesis can shrink it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

BATCH, LENGTH, CHANNELS = 2, 4, 3
MOST_CHANNELS = 6

Array = jax.Array
Shape = tuple[int, int, int]
Params = dict[str, dict[str, Array]]


@dataclass(frozen=True)
class Step:
    """One node: what it does to which earlier values, and a number that settles its details."""

    kind: str
    sources: tuple[int, ...]
    detail: int


@dataclass(frozen=True)
class RandomNetwork:
    """A network over `params`; its outputs are the last value and some of the others."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __call__(self, params: Params, x: Array) -> tuple[Array, ...]:
        return self._run(_Given(params), x)

    @property
    def params(self) -> Params:
        """Params of every layer, drawn from its name."""
        maker = _Made()
        jax.eval_shape(lambda x: self._run(maker, x), self.x)
        return jax.tree.map(jnp.asarray, maker.params)

    @property
    def x(self) -> Array:
        """An input."""
        values = np.random.default_rng(0).normal(size=(BATCH, LENGTH, CHANNELS))
        return jnp.asarray(values, jnp.float32)

    def _run(self, layers: _Layers, x: Array) -> tuple[Array, ...]:
        values, layers.positive = [x], jnp.sum(x) > 0
        for number, step in enumerate(self.steps):
            layers.name = f"{number}_{step.kind}"
            sources = [values[source % len(values)] for source in step.sources]
            values.append(KINDS[step.kind](layers, step.detail, *sources))
        return tuple(values[output % len(values)] for output in (*self.outputs, -1))


@dataclass
class _Layers:
    """Where a step finds its params; `name` is the step's, `positive` a fact about the input."""

    name: str = ""
    positive: Any = False

    def leaf(self, leaf: str, shape: tuple[int, ...]) -> Array:
        raise NotImplementedError


@dataclass
class _Given(_Layers):
    params: Params = field(default_factory=dict)

    def __init__(self, params: Params) -> None:
        self.params = params

    def leaf(self, leaf: str, shape: tuple[int, ...]) -> Array:
        return self.params[self.name][leaf]


@dataclass
class _Made(_Layers):
    params: Params = field(default_factory=dict)

    def leaf(self, leaf: str, shape: tuple[int, ...]) -> Array:
        rng = np.random.default_rng(zlib.crc32(f"{self.name}/{leaf}".encode()))
        value = rng.normal(size=shape)
        value = (
            np.exp(0.5 * value) if leaf == "var" else np.where(value < 0, value - 0.2, value + 0.2)
        )
        own = self.params.setdefault(self.name, {})
        return jnp.asarray(own.setdefault(leaf, value.astype(np.float32)))


def fitted(y: Array, like: Array) -> Array:
    """A value with the shape of another one: sliced, or padded with zeros."""
    y = y[:, : like.shape[1], : like.shape[2]]
    return jnp.pad(y, [(0, want - have) for have, want in zip(y.shape, like.shape, strict=True)])


def dense(layers: _Layers, detail: int, x: Array) -> Array:
    features = 2 + detail % 3
    y = x @ layers.leaf("kernel", (x.shape[2], features))
    return y + layers.leaf("bias", (features,))[None, None] if detail % 2 else y


def conv(layers: _Layers, detail: int, x: Array) -> Array:
    groups = 2 if x.shape[2] % 2 == 0 and detail % 3 == 0 else 1
    features = groups * (1 + detail % 2)
    kernel = layers.leaf("kernel", (2, x.shape[2] // groups, features))
    dims = ("NWC", "WIO", "NWC")
    padding, dilation = (("SAME", "VALID")[detail % 2 and x.shape[1] > 2], 1 + detail % 2)
    y = lax.conv_general_dilated(
        *(x, kernel, (1,), padding if dilation == 1 else "SAME"),
        rhs_dilation=(dilation,),
        dimension_numbers=dims,
        feature_group_count=groups,
    )
    return y + layers.leaf("bias", (features,))[None, None]


def depthwise(layers: _Layers, detail: int, x: Array) -> Array:
    many = 1 + detail % 2 if x.shape[2] * 2 <= MOST_CHANNELS else 1
    kernel = layers.leaf("kernel", (2, 1, many * x.shape[2]))
    return lax.conv_general_dilated(
        *(x, kernel, (1,), "SAME"),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[2],
    )


def transposed(layers: _Layers, detail: int, x: Array) -> Array:
    kernel = layers.leaf("kernel", (2, x.shape[2], 2 + detail % 2))
    y = lax.conv_transpose(
        x, kernel, (1 + detail % 2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y[:, :LENGTH]


def norm(layers: _Layers, detail: int, x: Array) -> Array:
    scale = layers.leaf("scale", (x.shape[2],))[None, None]
    if detail % 3 == 0:
        return x * lax.rsqrt(jnp.mean(x * x, axis=2, keepdims=True) + 1e-2) * scale
    shift = layers.leaf("bias", (x.shape[2],))[None, None]
    if detail % 3 == 1:
        centred = x - jnp.mean(x, axis=2, keepdims=True)
        return (
            centred * lax.rsqrt(jnp.mean(centred**2, axis=2, keepdims=True) + 1e-2) * scale + shift
        )
    mean, var = (layers.leaf(leaf, (x.shape[2],))[None, None] for leaf in ("mean", "var"))
    return (x - mean) * lax.rsqrt(var + 1e-3) * scale + shift


def elementwise_scale(layers: _Layers, detail: int, x: Array) -> Array:
    scale = layers.leaf("scale", (x.shape[2],))[None, None]
    return (x * scale, x / scale, jnp.where(x > 0, x, x * scale))[detail % 3]


def scan(layers: _Layers, detail: int, x: Array) -> Array:
    kernels = layers.leaf("kernel", (2, x.shape[2], x.shape[2]))

    def step(h: Array, w: Array) -> tuple[Array, None]:
        new = jax.nn.relu(h @ w)
        return (h + new if detail % 2 else new), None

    return lax.scan(step, x, kernels)[0]


def recurrent(layers: _Layers, detail: int, x: Array) -> Array:
    into = layers.leaf("into", (x.shape[2], 2))
    again = layers.leaf("again", (2, 2))

    def step(h: Array, now: Array) -> tuple[Array, Array]:
        h = jax.nn.relu(now @ into + h @ again)
        return h, h

    start = jnp.zeros((x.shape[0], 2), x.dtype)
    return lax.scan(step, start, x.swapaxes(0, 1))[1].swapaxes(0, 1)


def loop(layers: _Layers, detail: int, x: Array) -> Array:
    kernel = layers.leaf("kernel", (x.shape[2], x.shape[2]))
    return lax.fori_loop(0, 2, lambda _, h: jax.nn.relu(h @ kernel), x)


def branch(layers: _Layers, detail: int, x: Array) -> Array:
    kernels = [layers.leaf(leaf, (x.shape[2], 2)) for leaf in ("one", "two")]
    turns = [lambda h, w=kernel: h @ w for kernel in kernels]
    return lax.cond(layers.positive, *turns, x) if detail % 2 else lax.switch(1, turns, x)


def attention(layers: _Layers, detail: int, x: Array) -> Array:
    q, k, v = (x @ layers.leaf(leaf, (x.shape[2], 2)) for leaf in "qkv")
    scores = jnp.einsum("bqd,bkd->bqk", q, k)
    weights = jax.nn.softmax(scores, axis=-1) if detail % 2 else scores
    return jnp.einsum("bqk,bkd->bqd", weights, v)


UNARY: tuple[Callable[[Array], Array], ...] = (
    *(jax.nn.relu, lambda x: jax.nn.leaky_relu(x, jnp.asarray(0.1, x.dtype)), jnp.abs),
    *(jnp.negative, lambda x: 3.0 * x, lambda x: x / -2.0, lax.stop_gradient),
    *(lax.optimization_barrier, jax.jit(jax.nn.relu), jax.checkpoint(lambda x: x + x)),
    *(lambda x: x * x, lambda x: x**3, lambda x: jnp.sqrt(jnp.abs(x)), lambda x: x * jnp.abs(x)),
    *(lambda x: jax.nn.relu(x) ** 2, lambda x: jnp.where(x > 0, x, 0.0), lambda x: jnp.sign(x) * x),
    *(lambda x: x[:, ::-1], lambda x: x[..., ::-1], lambda x: jnp.roll(x, 1, 2)),
    *(lambda x: jnp.cumsum(x, 1), lambda x: jnp.cumsum(x, 2), lambda x: jnp.sort(x, 1)),
    *(
        lambda x: jnp.cummax(x, 1) if hasattr(jnp, "cummax") else lax.cummax(x, 1),
        lambda x: x[::-1],
    ),
    *(lambda x: x[..., jnp.array([1, 0])], lambda x: x[..., :2], lambda x: x[:, :1]),
    *(lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], lambda x: jnp.tile(x, (1, 1, 2))),
    *(lambda x: jnp.repeat(x, 2, axis=2), lambda x: jnp.max(x, 1, keepdims=True)),
    *(lambda x: jnp.mean(x, 1, keepdims=True), lambda x: jnp.sum(x, 2, keepdims=True)),
    *(lambda x: jnp.max(x, 2, keepdims=True), lambda x: x - jnp.mean(x, 1, keepdims=True)),
    *(lambda x: x.reshape(BATCH, -1, 1)[:, :LENGTH], lambda x: jnp.concatenate([x, -x], 2)),
    *(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), "SAME"),),
    *(lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "SAME"),),
    *(lambda x: lax.dynamic_slice_in_dim(x, 0, 1, 1), lambda x: x.at[:, 0].set(0.0)),
    *(lambda x: x.at[..., 0].multiply(2.0), lambda x: jnp.split(x, [1], axis=2)[0]),
    *(lambda x: x.swapaxes(0, 1).swapaxes(0, 1), lambda x: x.astype(x.dtype)),
    *(jnp.tanh, jax.nn.gelu, jax.nn.sigmoid, jax.nn.silu, lambda x: jax.nn.softmax(x, axis=2)),
    *(lambda x: jnp.minimum(x, 0.5), lambda x: jnp.clip(x, -1.0, 1.0), lambda x: x + 1.0, jnp.exp),
)


def mapped(layers: _Layers, detail: int, x: Array) -> Array:
    return UNARY[detail % len(UNARY)](x)[..., :MOST_CHANNELS]


BINARY: tuple[Callable[[Array, Array], Array], ...] = (
    *(jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum),
    *(lambda x, y: jnp.where(x > 0, x, y), lambda x, y: jnp.where(y > 0, x, -x)),
    *(
        lambda x, y: x * jax.nn.relu(y),
        lambda x, y: x * jax.nn.sigmoid(y),
        lambda x, y: x + 2.0 * y,
    ),
    *(lambda x, y: x + jnp.mean(y, axis=1, keepdims=True), lambda x, y: x * y[:, :1]),
)


def merged(layers: _Layers, detail: int, x: Array, y: Array) -> Array:
    return BINARY[detail % len(BINARY)](x, fitted(y, x))


def joined(layers: _Layers, detail: int, x: Array, y: Array) -> Array:
    y = fitted(y, x[..., :1] * jnp.ones((1, 1, y.shape[2]), x.dtype))
    return jnp.concatenate([x, y], axis=2)[..., :MOST_CHANNELS]


def product(layers: _Layers, detail: int, x: Array, y: Array) -> Array:
    y = fitted(y, y[..., :1] * jnp.ones((1, 1, x.shape[2]), x.dtype))
    return jnp.einsum("blc,bkc->blk", x, y)[..., :MOST_CHANNELS]


KINDS: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        *(dense, conv, depthwise, transposed, norm, elementwise_scale, scan, recurrent, loop),
        *(branch, attention, mapped, merged, joined, product),
    )
}
TWO_SOURCES = ("merged", "joined", "product")
USUAL = ("dense", "conv", "depthwise", "mapped", "mapped", "merged", *KINDS)


@st.composite
def random_networks(draw: st.DrawFn, most: int = 7) -> RandomNetwork:
    """Networks of up to `most` steps, mostly layers in a row with skips and branches.

    One seed decides all steps, for hypothesis would repeat itself; fewer steps are a prefix.
    """
    count, seed = draw(st.integers(2, most)), draw(st.integers(0, 2**62))
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for number in range(count):
        kind = str(rng.choice(USUAL))
        first = number if rng.random() < 0.6 else int(rng.integers(number + 1))
        more = (int(rng.integers(number + 1)),) if kind in TWO_SOURCES else ()
        steps.append(Step(kind, (first, *more), int(rng.integers(10_000))))
    last = Step("dense", (count,), int(rng.integers(6)))
    outputs = (int(rng.integers(count + 1)),) if rng.random() < 0.3 else ()
    return RandomNetwork((*steps, last), outputs)


def size(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
