"""Bad declarations: each error names path, axis and shape, and says what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxcle import Spec
from flaxcle.errors import FlaxcleError, PathError, SpecError, WeightError
from flaxcle.spec.table import Pair


def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {
    "params": {
        "stem": {"kernel": leaf(3, 3, 3, 8), "bias": leaf(8)},
        "norm": {"scale": leaf(8), "bias": leaf(8)},
        "BatchNorm_0": {"scale": leaf(8), "bias": leaf(8)},
        "conv": {"kernel": leaf(3, 3, 8, 16)},
        "wide": {"kernel": leaf(3, 3, 24, 16)},
        "odd": {"kernel": leaf(3, 3, 7, 16)},
        "dense": {"kernel": leaf(16, 10)},
        "after": {"kernel": leaf(30, 4)},
        "other": {"kernel": leaf(3, 3, 3, 12)},
        "gain": {"scale": leaf(8)},
        "slope": {"negative_slope": leaf()},
        "attention": {"query": {"kernel": leaf(8, 2, 4)}, "out": {"kernel": leaf(2, 4, 8)}},
        "lora": {"kernel": leaf(8, 4), "down": leaf(8, 2), "up": leaf(2, 4)},
        "two": {"kernel": leaf(8, 4), "w": leaf(8, 4)},
        "codes": {"kernel": leaf(8, 4, dtype=jnp.int8)},
        "waves": {"kernel": leaf(8, 4, dtype=jnp.complex64)},
        "empty": {"kernel": leaf(3, 3, 8, 0)},
        "ConvTranspose_0": {"kernel": leaf(2, 2, 8, 8), "bias": leaf(8)},
        "stacked": {"kernel": leaf(5, 8, 4), "bias": leaf(5, 4)},
        "first": {"kernel": leaf(8, 2, 4)},
    },
    "batch_stats": {"narrow": {"mean": leaf(5), "var": leaf(5)}},
}

CASES: dict[str, tuple[Any, type[FlaxcleError], list[str]]] = {
    "no pairs": ([], SpecError, ["no pairs are given", "[('Conv_0', 'Conv_1'), "]),
    "a string for pairs": ("stem", SpecError, ["no pairs are given, got 'stem'"]),
    "a chain that is a string": (("stem", "conv"), SpecError, ["got 'stem'", "list of chains"]),
    "an empty chain": ([()], SpecError, ["a chain is a sequence of at least two names", "got ()"]),
    "a chain of one": ([("stem",)], SpecError, ["at least two names", "got ('stem',)"]),
    "an empty tuple": ([("stem", ())], SpecError, ["an element of a chain is a name", "got ()"]),
    "no name": ([("stem", 3)], SpecError, ["an element of a chain is a name", "got 3"]),
    "unknown name": ([("stem", "cnov")], PathError, ["named 'cnov'", "closest names: 'conv'"]),
    "norm at the end": (
        [("stem", "norm")],
        SpecError,
        ["can't end with 'norm'", "does not read channels with a kernel", "both ends"],
    ),
    "activation at the start": (
        [("slope", "conv")],
        SpecError,
        ["can't start with 'slope'", "no kernel and no scale"],
    ),
    "consumer of another size": (
        [("stem", "odd")],
        SpecError,
        [
            "'odd' can't read the channels of 'stem'",
            "'params/stem/kernel' of shape (3, 3, 3, 8) makes 8 on axes (-1,)",
            "'params/odd/kernel' of shape (3, 3, 7, 16) reads 7 on axes (-2,)",
            "order of the data flow",
            "'odd[in=-1]'",
        ],
    ),
    "consumer of a concat": (
        [("stem", "wide")],
        SpecError,
        ["reads 24 on axes (-2,)", "reads a concat", "'wide[at=16]'", "flatten", "multiple of 8"],
    ),
    "dense of another size": (
        [("conv", "after")],
        SpecError,
        ["makes 16", "reads 30", "multiple of 16"],
    ),
    "dense after dense is no flatten": (
        [("dense", "after")],
        SpecError,
        ["makes 10", "reads 30", "the producer a convolution", "'after[at=0+10]'"],
    ),
    "producers of different width": (
        [(("stem", "other"), "conv")],
        SpecError,
        ["'stem' and 'other' can't share one scale", "makes 8", "makes 12", "'other[out=-2]'"],
    ),
    "norm without statistics": (
        [("stem", "norm", "conv")],
        SpecError,
        ["can't pass 'norm'", "group 'stem -> conv'", "start a chain at the norm"],
    ),
    "multiplication between": (
        [("stem", "gain", "conv")],
        SpecError,
        ["can't pass 'gain'", "leave a mere multiplication out of the chain"],
    ),
    "batch norm without statistics": (
        [("stem", "BatchNorm_0", "conv")],
        SpecError,
        ["can't pass 'BatchNorm_0'", "pass the whole variables dict"],
    ),
    "batch norm of another size": (
        [("stem", "narrow", "conv")],
        SpecError,
        ["can't scale 8 channels", "'batch_stats/narrow/mean' of shape (5,)", "[at=...]"],
    ),
    "norm in a tuple of kernels": (
        [("stem", ("conv", "norm"), "dense")],
        SpecError,
        ["'norm' has no kernel and shares a tuple", "('conv', 'norm')", "its own place"],
    ),
    "module of modules": (
        [("stem", "attention")],
        SpecError,
        [
            "'attention' is not one layer",
            "'attention/out', 'attention/query'",
            "name the sub-modules",
        ],
    ),
    "leaves of unknown role": (
        [("stem", "lora")],
        SpecError,
        ["'params/lora/down' of shape (8, 2)", "'params/lora/up' of shape (2, 4)", "one by one"],
    ),
    "two kernels": ([("stem", "two")], SpecError, ["'two' has several leaves", "by its own path"]),
    "integer leaf": (
        [("stem", "codes")],
        WeightError,
        ["dtype int8", "'params/codes/kernel'", "(8, 4)"],
    ),
    "complex leaf": (
        [("stem", "waves")],
        WeightError,
        ["dtype complex64", "axes (-2,)", "'stem -> waves'"],
    ),
    "zero-size axis": (
        [("stem", "empty")],
        SpecError,
        ["axis 3 has size zero", "'params/empty/kernel' of shape (3, 3, 8, 0)", "drop this layer"],
    ),
    "square transposed kernel": (
        [("stem", "ConvTranspose_0")],
        SpecError,
        ["square kernel", "(2, 2, 8, 8)", "'ConvTranspose_0[out=-2, in=-1]' with transpose_kernel"],
    ),
    "stacked layers": (
        [("stem", "stacked")],
        SpecError,
        ["the bias of shape (5, 4) belongs to no axis", "(5, 8, 4)", "nn.scan or nn.vmap"],
    ),
    "grouped or first axis": (
        [("stem", "first")],
        SpecError,
        [
            "'first' reads 8 channels in groups, or on its first axis",
            "'first[in=-2+-1]'",
            "'first[in=0]'",
        ],
    ),
    "same producer twice": (
        [(("stem", "stem"), "conv")],
        SpecError,
        ["'stem' stands 2 times in one group", "'stem[at=0+16]'"],
    ),
    "same consumer twice": (
        [("stem", ("conv", "params/conv/kernel"))],
        SpecError,
        ["'conv' stands 2 times in one group", "group 'stem -> conv + conv'"],
    ),
    "a layer that feeds itself": ([("conv", "conv")], SpecError, ["'conv' stands 2 times"]),
    "producer in two groups": (
        [("stem", "conv"), ("stem", "wide[at=0]")],
        SpecError,
        [
            "two groups claim the same axis of 'params/stem/kernel'",
            "shape (3, 3, 3, 8), axes (-1,)",
            "'stem -> conv' and 'stem -> wide'",
            "consumers of one tensor together in one tuple",
        ],
    ),
    "consumer in two groups": (
        [("stem", "conv"), ("norm", "conv")],
        SpecError,
        ["the same axis of 'params/conv/kernel'", "producers of one sum together in one tuple"],
    ),
    "overlapping slices": (
        [("stem", "wide[at=0]"), ("norm", "wide[at=4]")],
        SpecError,
        ["two groups claim the same axis of 'params/wide/kernel'"],
    ),
    "slice out of range": (
        [("stem", "wide[at=20]")],
        SpecError,
        ["8 channels don't fit at position 20 of an axis of size 24", "(3, 3, 24, 16)"],
    ),
    "slice of a producer": (
        [("stem[at=4]", "conv")],
        SpecError,
        ["can't start with 'stem[at=...]'", "says where a consumer reads"],
    ),
    "slices that overlap themselves": (
        [("stem", "wide[at=0+4]")],
        SpecError,
        ["8 channels don't fit at position 4"],
    ),
    "axis out of range": (
        [("stem[out=4]", "conv")],
        SpecError,
        ["axes (4,) are out of range or named twice", "(3, 3, 3, 8)", "from -4 to 3"],
    ),
    "axis named twice": ([("stem", "conv[in=2+-2]")], SpecError, ["axes (2, -2)", "named twice"]),
    "wrong axis": ([("stem", "conv[in=0]")], SpecError, ["reads 3 on axes (0,)"]),
}


@pytest.mark.parametrize("name", CASES)
def test_says_what_is_wrong_where_and_what_to_do(name: str) -> None:
    pairs, kind, parts = CASES[name]
    with pytest.raises(kind) as error:
        Spec.from_pairs(pairs, PARAMS)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *("conv[", "conv]", "conv[]", "conv[in]", "conv[in=]", "conv[in=x]", "conv[on=1]"),
        *("conv[in=1.5]", "conv[in=1][out=2]", "conv[in=1, in=2]", "conv[in=1,]", "[in=1]"),
        *("conv[in=1]x", ""),
    ],
)
def test_bad_syntax_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError) as error:
        Spec.from_pairs([("stem", text)], PARAMS)
    assert f"can't read the name {text!r}" in str(error.value)
    assert "'path[out=-2, in=-1]'" in str(error.value)


@pytest.mark.parametrize(
    "text", ["conv[in=-2]", "conv[ in = -2 ]", " conv [in=2, out=3]", "/conv/"]
)
def test_spaces_and_slashes_do_not_matter(text: str) -> None:
    plain: list[Pair] = [("stem", "conv")]
    assert Spec.from_pairs([("stem", text)], PARAMS).groups[0].name == "stem -> conv"
    assert Spec.from_pairs(plain, PARAMS).scales == 8
