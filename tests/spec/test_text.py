"""What people read: the table, the index in words, the explanation of a leaf."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from flaxcle import Blocked, Group, Index, Site, Spec
from flaxcle.errors import PathError
from flaxcle.spec.text import index_words


def pair(name: str, *sites: Site, held: bool = False, shape: tuple[int, ...] = (8,)) -> Group:
    return Group(name, shape, sites, held)


CHAIN = Spec(
    (
        pair(
            "stem -> a + b",
            Site("params/stem/kernel", (-1,), 1),
            Site("params/stem/bias", (-1,), 1),
            Site("params/block_9/conv/kernel", (-2,), -1),
            Site("params/block_10/conv/kernel", (-2,), -1),
        ),
        pair("norm -> head", Site("norm", (0,), 1), Site("head/kernel", (0,), -1), held=True),
    ),
    blocked=(
        *(Blocked(f"params/x_{i}/kernel", 0, "gelu is not homogeneous", "erf") for i in range(6)),
        Blocked("params/stem/kernel", 2, "the input is fixed", "", "Stem_0", "model.py:7"),
    ),
    unused=("params/dead/kernel",),
)


def test_the_table_as_a_whole() -> None:
    assert str(CHAIN) == (
        "2 groups, 16 independent scales, 6 leaves scaled, 1 group held, 7 axes blocked, "
        "1 leaf unused\n"
        "\n"
        "stem -> a + b  8 channels\n"
        "    ×s  stem: kernel[-1], bias[-1]   ÷s  block_{9,10}/conv: kernel[-2]\n"
        "norm -> head   8 channels, held\n"
        "    ×s  norm[0]   ÷s  head: kernel[0]\n"
        "\n"
        "blocked: 7 axes\n"
        "   6 × gelu is not homogeneous (erf)\n"
        "       x_0/kernel[0], x_1/kernel[0], x_2/kernel[0], x_3/kernel[0] and 2 more\n"
        "   1 × the input is fixed, model.py:7\n"
        "       stem/kernel[2]\n"
        "\n"
        "unused: dead/kernel"
    )


def test_a_reason_that_names_its_primitive_says_it_once() -> None:
    text = str(Spec(blocked=(Blocked("a", 0, "'add' needs equal scales", "add"),)))
    assert text.splitlines()[1:4] == ["", "blocked: 1 axis", "   1 × 'add' needs equal scales"]


def test_an_empty_spec_says_so() -> None:
    assert str(Spec()) == "0 groups, 0 independent scales, 0 leaves scaled"


@pytest.mark.parametrize(
    ("power", "mark"),
    [(1, "×s "), (-1, "÷s "), (-2, "÷s^2 "), (2, "×s^2 "), (Fraction(1, 2), "×s^1/2 ")],
)
def test_powers_are_marked(power: Fraction, mark: str) -> None:
    text = str(Spec((pair("a", Site("a/kernel", (-1,), power)),)))
    assert f"    {mark} a: kernel[-1]" in text


def test_long_groups_wrap_and_lose_nothing() -> None:
    sites = [Site(f"params/level_{i}/{'deep_' * i}/kernel", (-1,), 1) for i in range(12)]
    text = str(Spec((pair("everything", *sites),)))
    assert max(map(len, text.splitlines())) <= 110
    for site in sites:
        assert f"{site.path.removeprefix('params/').removesuffix('/kernel')}: kernel[-1]" in text


def test_joint_axes_and_shapes() -> None:
    site = Site("value/kernel", (1, 2), 1)
    text = str(Spec((pair("heads", site, shape=(4, 16)), pair("one", Site("g", (), 1), shape=()))))
    assert "heads  4×16 channels" in text
    assert "value: kernel[1,2]" in text
    assert "one    1 channel\n" in text


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (np.tile(np.arange(16), 49), "all channels 49 times over"),
        (np.repeat(np.arange(16), 49), "each channel 49 times"),
        (np.zeros(64, int), "channel 0 everywhere"),
        (np.arange(64), ""),
        (np.r_[np.full(16, -1), np.arange(16), np.full(16, -1)], "channels 0..15 at 16..31"),
        (np.r_[np.arange(4), -1, np.arange(4)], "channels 0..3 at 0..3, 0..3 at 5..8"),
        (np.r_[-1, 0], "channels 0 at 1"),
        (np.arange(64)[None] // 16 * 8 + np.arange(8)[:, None], "groups of 8"),
        (np.tile(np.repeat(np.arange(4), 2), 3), "4 channels over 24 positions"),
        (np.random.default_rng(0).permutation(64), "64 channels permuted"),
        (np.repeat(np.arange(6).reshape(2, 3), 4, axis=0), "blocks of 3 channels, each 4 times"),
    ],
)
def test_an_index_in_words(channels: np.ndarray, words: str) -> None:
    assert index_words(Index.of(channels)) == words


def test_words_stand_behind_the_axes() -> None:
    site = Site("fc/kernel", (0,), -1, np.tile(np.arange(8), 4))
    assert "fc: kernel[0] (all channels 4 times over)" in str(Spec((pair("flat", site),)))


def test_lines_do_not_break_inside_an_index() -> None:
    ids = np.tile(np.arange(8), 4)
    sites = [Site(f"stage_{i}/kernel", (0,), -1, ids) for i in (1, 2, 3)]
    sites = [replace(site, path=f"{'x/' * n}{site.path}") for n, site in enumerate(sites)]
    text = str(Spec((pair("flat", *sites),)))
    assert len(text.splitlines()) == 5
    assert text.count("kernel[0] (all channels 4 times over)") == 3


def test_explain_tells_who_moves_an_axis_and_what_pins_the_others() -> None:
    assert CHAIN.explain("stem/kernel") == (
        "params/stem/kernel\n"
        "  axis -1: ×s of 'stem -> a + b', 8 channels, together with\n"
        "    ×s  stem: bias[-1]   ÷s  block_{9,10}/conv: kernel[-2]\n"
        "  axis 2: blocked, the input is fixed (in Stem_0 at model.py:7)"
    )
    assert CHAIN.explain("x_3") == (
        "params/x_3/kernel\n  axis 0: blocked, gelu is not homogeneous (erf)"
    )
    assert CHAIN.explain("dead/kernel").endswith("  unused: no output depends on it")
    assert "8 channels, held, together with" in CHAIN.explain("head")


def test_explain_of_a_module_and_of_a_joint_index() -> None:
    assert CHAIN.explain("stem").startswith("params/stem/kernel\n")
    assert "params/stem/bias\n" in CHAIN.explain("stem")
    ids = np.arange(8)[None] // 4 * 2 + np.arange(2)[:, None]
    spec = Spec((pair("a -> b", Site("b/kernel", (-2, -1), -1, ids), shape=(4,)),))
    assert spec.explain("b") == (
        "b/kernel\n  axes -2, -1 jointly: ÷s of 'a -> b', 4 channels (groups of 2)"
    )


def test_explain_of_an_unknown_path() -> None:
    with pytest.raises(PathError) as error:
        CHAIN.explain("stam/kernel")
    assert "the spec says nothing about 'stam/kernel'" in str(error.value)
    assert "neither scaled nor blocked nor unused" in str(error.value)
    assert "'stem/kernel'" in str(error.value)


def test_a_row_less_group_name_does_not_hide_a_held_one() -> None:
    held = replace(CHAIN, groups=tuple(replace(g, held=True) for g in CHAIN.groups))
    assert "2 groups held" in str(held)
