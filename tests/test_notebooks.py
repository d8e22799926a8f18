"""What notebooks and rich show: the same words as print, escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import jax.numpy as jnp
import pytest
from rich.console import Console

import flaxcle as fc

HOSTILE = "<script>alert('1 & 2')</script> [bold]x[/bold]"
TABLE = fc.Table(("layer", "max <", "note"), ((HOSTILE, 1.23456789, None), ("b", 2.0, None)))
SPEC = fc.Spec(
    (
        fc.Group("a & <b>", (4,), (fc.Site("a/kernel", (1,)), fc.Site("b/kernel", (0,), -1))),
        fc.Group("held", (2,), (fc.Site("c", (0,)),), held=True),
    ),
    blocked=(fc.Blocked("c/kernel", 0, "x < y is not homogeneous", "lt"),),
)


def words(html: str) -> list[str]:
    """The texts of all cells and paragraphs; raises where the markup is broken."""
    tree = ET.fromstring(f"<html>{html}</html>")
    return [node.text or "" for node in tree.iter() if node.tag in ("th", "td", "p", "summary")]


def shown(item: object) -> str:
    console = Console(width=150, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(item)
    return capture.get()


def test_a_table_is_escaped_and_rounded_as_in_print():
    cells = ["layer", "max <", "note", HOSTILE, "1.2346", "-", "b", "2", "-"]
    assert words(TABLE._repr_html_()) == cells
    assert "<script" not in TABLE.to_html()
    assert str(TABLE).split()[-2:] == ["2", "-"]


def test_numbers_stand_to_the_right():
    tree = ET.fromstring(TABLE.to_html())
    styles = [cell.get("style", "") for cell in tree.iter("td")]
    assert ["right" in style for style in styles[:3]] == [False, True, True]


def test_colours_are_the_notebooks():
    assert "color" not in TABLE.to_html() + SPEC._repr_html_()


def test_a_spec_shows_its_groups_and_folds_away_what_is_blocked():
    found = words(SPEC._repr_html_())
    assert found[0] == str(SPEC).splitlines()[0]
    assert found[1:5] == ["group", "scales", "multiplied", "divided"]
    assert found[5:9] == ["a & <b>", "4 channels", "×s a: kernel[1]", "÷s b: kernel[0]"]
    assert found[9:13] == ["held", "2 channels, held", "×s c[0]", ""]
    assert found[13:] == [
        *("what is blocked", "axes", "why", "which"),
        *("1", "x < y is not homogeneous (lt)", "c/kernel[0]"),
    ]


def test_an_empty_spec_says_so():
    assert words(fc.Spec()._repr_html_()) == [str(fc.Spec())]


@pytest.mark.parametrize("item", [TABLE, SPEC], ids=["table", "spec"])
def test_rich_shows_the_words_of_print_without_reading_markup(item):
    text = shown(item)
    for word in str(item).split():
        assert word in text


def test_calibration_and_recipe_show_their_tables():
    fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, jnp.ones((4, 2))
    calibration = fc.calibrate(fn, params, [x], fc.QuantConfig())
    recipe = fc.Recipe(fn, params, calibration, TABLE, fc.QuantConfig(), params, params)
    for item, table in ((calibration, calibration.table()), (recipe, TABLE)):
        assert item._repr_html_() == table.to_html()
        assert shown(item) == shown(table)
