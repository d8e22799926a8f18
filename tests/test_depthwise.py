"""Depthwise convolutions as sums over taps: the same numbers as the operation itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.jaxpr import Computed, computed, trace

RNG = np.random.default_rng(0)
LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NCHW"))


def traced(shape: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Any:
    """The convolution's op, its function and its operands."""
    dtype = options.pop("dtype", jnp.float32)
    x, w = (jnp.asarray(RNG.normal(size=s), dtype) for s in (shape, kernel))

    def fn(p: Any, x: Any) -> Any:
        return jax.lax.conv_general_dilated(x, p["w"], **options)

    program = trace(fn, {"w": w}, x)
    (op,) = (o for o in program.graph.flat if o.primitive == "conv_general_dilated")
    return program, op, fn, w, x


def sized(layout: str, batch: int, channels: int, space: tuple[int, ...]) -> tuple[int, ...]:
    sizes = {"N": batch, "C": channels, "H": space[0], "W": space[1]}
    return tuple(sizes[letter] for letter in layout)


def options_of(strides: Any, dilation: Any, padding: Any, layout: Any, groups: int) -> Any:
    return {
        "window_strides": strides,
        "rhs_dilation": dilation,
        "padding": padding,
        "dimension_numbers": layout,
        "feature_group_count": groups,
    }


CASES = list(
    product(
        LAYOUTS,
        ((1, 1), (2, 1), (3, 2)),
        ((1, 1), (2, 1)),
        ("SAME", "VALID", ((2, 0), (-1, 1))),
    )
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sum_over_taps_is_the_convolution(case: Any) -> None:
    layout, strides, dilation, padding = case
    kernel = {"H": 3, "W": 2, "I": 1, "O": 6}
    shape = sized(layout[0], 2, 6, (9, 7))
    options = options_of(strides, dilation, padding, layout, 6)
    program, op, fn, w, x = traced(shape, tuple(kernel[k] for k in layout[1]), **options)

    def quick(w: Any, x: Any) -> Any:
        return program.run({"w": w}, (x,), {op: Computed()}).outputs[0]

    assert "scan" in str(jax.make_jaxpr(quick)(w, x))
    np.testing.assert_allclose(quick(w, x), fn({"w": w}, x), rtol=1e-5, atol=1e-5)

    def slope(run: Any) -> Any:
        return jax.grad(lambda w, x: jnp.sum(jnp.sin(run(w, x))), (0, 1))(w, x)

    for got, want in zip(slope(quick), slope(lambda w, x: fn({"w": w}, x)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_half_precision_sums_in_float32_and_keeps_its_dtype() -> None:
    options = options_of((1, 1), (1, 1), "SAME", LAYOUTS[0], 4)
    _, op, fn, w, x = traced((1, 16, 16, 4), (7, 7, 1, 4), **options, dtype=jnp.bfloat16)
    (got,) = computed(op, x, w)
    assert got.dtype == jnp.bfloat16
    wide = [v.astype(jnp.float32) for v in (w, x)]
    exact = fn({"w": wide[0]}, wide[1])
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "kernel", "groups"),
    [
        ((1, 8, 8, 4), (3, 3, 4, 4), 1),
        ((1, 8, 8, 4), (3, 3, 2, 4), 2),
        ((1, 8, 8, 2), (3, 3, 1, 4), 2),
    ],
    ids=["dense", "grouped", "two outputs a channel"],
)
def test_other_convolutions_stay_what_they_are(shape: Any, kernel: Any, groups: int) -> None:
    options = options_of((1, 1), (1, 1), "SAME", LAYOUTS[0], groups)
    _, op, _, w, x = traced(shape, kernel, **options)
    text = str(jax.make_jaxpr(lambda w, x: computed(op, x, w))(w, x))
    assert "conv_general_dilated" in text
    assert "scan" not in text


def test_one_dimension_and_three() -> None:
    for space, letters in (((9,), "W"), ((5, 6, 4), "DHW")):
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        ones = (1,) * len(space)
        options = options_of(ones, ones, "SAME", numbers, 3)
        _, op, fn, w, x = traced((2, *space, 3), (*(2 for _ in space), 1, 3), **options)
        (got,) = computed(op, x, w)
        np.testing.assert_allclose(got, fn({"w": w}, x), rtol=1e-5, atol=1e-5)


def test_double_precision() -> None:
    with jax.enable_x64(True):
        options = options_of((2, 1), (1, 1), "SAME", LAYOUTS[0], 4)
        _, op, fn, w, x = traced((1, 8, 8, 4), (3, 3, 1, 4), **options, dtype=jnp.float64)
        (got,) = jax.jit(lambda x, w: computed(op, x, w))(x, w)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, fn({"w": w}, x), rtol=1e-12)
