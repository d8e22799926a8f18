"""Pictures are checked for the numbers that they show, not for their pixels."""

from __future__ import annotations

import sys
from itertools import pairwise

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.errors import ConfigError, FlaxcleError
from flaxcle.plot.style import LONGEST, shortened

KERNEL = np.array([[64.0, 2.0, 0.0], [-127.0, 8.0, 0.0]], np.float32)


def net(params, x):
    return x @ params["layer"]["kernel"]


def statistics(kernel):
    params = {"layer": {"kernel": jnp.asarray(kernel)}}
    return fc.range_statistics(net, params, [jnp.ones((1, 2))], fc.QuantConfig())


def texts(labels):
    return [label.get_text() for label in labels]


def spans(ax):
    """The left and right end of each patch."""
    boxes = [patch.get_path().get_extents() for patch in ax.patches]
    return [(box.x0, box.x1) for box in boxes]


def test_channel_ranges_shows_quartiles_of_shares_before_and_after():
    ax = fc.plot.channel_ranges(statistics(KERNEL), statistics(KERNEL / [1, 0.125, 1]))
    peaks = [[127, 8], [127, 64]]
    wanted = [np.quantile(np.array(row) / 127, [0.25, 0.75]) for row in peaks]
    np.testing.assert_allclose(spans(ax), wanted, rtol=1e-3)
    assert texts(ax.get_legend().get_texts()) == ["before", "after", "half a step of the grid"]
    assert texts(ax.get_yticklabels()) == ["layer"]
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed[0].get_xdata(), 0.5 / 127)


def test_layers_without_a_partner_are_left_alone():
    other = fc.range_statistics(
        lambda p, x: x @ p["other"], {"other": jnp.eye(2)}, [jnp.ones((1, 2))], fc.QuantConfig()
    )
    ax = fc.plot.channel_ranges(statistics(KERNEL), other)
    assert len(ax.patches) == 1


@pytest.mark.parametrize(("scale", "unit"), [(None, 1.0), (0.5, 0.5)])
def test_channels_has_a_box_each(scale, unit):
    five = statistics(KERNEL).channels["layer/weight"]
    ax = fc.plot.channels(five, scale=scale)
    boxes = [patch.get_path().get_extents() for patch in ax.patches]
    np.testing.assert_allclose([[box.y0, box.y1] for box in boxes], five[:, [1, 3]] / unit)


def test_histogram_shows_counts_zeros_and_what_is_clipped():
    found = fc.Histogram(0.5, -2, 1, np.array([1, 0, 7, 2, 5]), 3, 2, zeros=4, vanished=3)
    ax = fc.plot.histogram(found)
    stairs = ax.patches[0].get_data()
    np.testing.assert_array_equal(stairs.values, found.counts)
    np.testing.assert_array_equal(stairs.edges, [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25])
    assert [bar.get_height() for bar in ax.patches[1:]] == [7, 4, 3, 2]
    assert texts(ax.get_legend().get_texts()) == [
        "on the grid",
        "under half a step: 15 %",
        "exactly zero",
        "clipped: 25 %",
    ]
    below, above = (bar.get_x() + bar.get_width() / 2 for bar in ax.patches[-2:])
    assert below < stairs.edges[0] < stairs.edges[-1] < above


def test_sensitivity_has_the_worst_on_top_and_the_longest_bar():
    rows = [("(all)", kind, value) for kind, value in (("both", 9.0), ("weights", 10.0))]
    rows += [("b", "weights", 12.0), ("a", "weights", 30.0), ("b", "activations", float("inf"))]
    ax = fc.plot.sensitivity(fc.Table(("layer", "kind", "alone dB"), tuple(rows)))
    assert texts(ax.get_yticklabels()) == ["b", "a"]
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    assert top < 0 < 1 < bottom
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert ends == [12, 30, 33]
    assert {patch.get_x() for patch in ax.patches} == {33}
    assert [line.get_xdata()[0] for line in ax.lines] == [9, 10]
    assert ax.xaxis_inverted()


def test_scales_are_on_an_axis_of_factors():
    log2 = {"a -> b": jnp.array([-2.0, 0.0, 2.0]), "b -> c": jnp.zeros(1)}
    ax = fc.plot.scales(fc.Scales(log2))
    assert texts(ax.get_yticklabels()) == ["a -> b", "b -> c"]
    np.testing.assert_allclose(spans(ax), [(0.625, 2.5), (1, 1)])


def test_stages_run_from_top_to_bottom():
    columns = ("stage", "kept", "SQNR dB", "corrected dB")
    rows = (("as it is", True, 9.0, -np.inf), ("equalize", False, 20.0, 22.0))
    ax = fc.plot.stages(fc.Table(columns, rows))
    assert texts(ax.get_yticklabels()) == ["as it is", "equalize"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [9, 20])
    best = next(line for line in ax.lines if line.get_label() == "best")
    assert best.get_xdata()[0] == 22
    faces = ax.collections[0].get_facecolors()
    assert (faces[0] != faces[1]).any()
    np.testing.assert_array_equal(faces[1], [1, 1, 1, 1])


@pytest.mark.parametrize(("labels", "bars"), [(None, [100, 50]), ([0, 0], [50, 100, 100, 50])])
def test_accuracy_has_a_bar_for_each_number(labels, bars):
    logits = np.eye(2)
    table = fc.compare(logits, {"int8": logits[[0, 0]]}, labels and np.array(labels))
    ax = fc.plot.accuracy(table)
    assert [patch.get_width() for patch in ax.patches] == bars
    assert texts(ax.get_yticklabels()) == ["float", "int8"]


def test_accuracy_of_another_table_is_an_error():
    with pytest.raises(ConfigError) as error:
        fc.plot.accuracy(fc.Table(("layer",), ()))
    assert str(error.value) == (
        "there is nothing to draw. What to do: pass the table of flaxcle.compare."
    )


def test_given_axes_are_drawn_in_and_returned():
    figure, (left, right) = plt.subplots(1, 2)
    assert fc.plot.histogram(statistics(KERNEL).histograms["layer/weight"], ax=left) is left
    assert fc.plot.channel_ranges(statistics(KERNEL), ax=right) is right
    assert (len(left.patches) > 0, len(right.patches)) == (True, 1)
    assert plt.get_fignums() == [figure.number]


def test_the_figure_grows_with_the_layers_so_that_names_do_not_overlap():
    names = [f"model/encoder/layers_{k}/attention/self/query/kernel" for k in range(120)]
    rows = tuple((name, "weights", 10.0 + k) for k, name in enumerate(names))
    ax = fc.plot.sensitivity(fc.Table(("layer", "kind", "alone dB"), rows))
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) == len(names)
    assert all(one.y0 >= two.y1 for one, two in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_long_names_lose_their_middle():
    name = "a" * 30 + "b" * 30
    assert len(shortened(name)) == LONGEST
    assert shortened(name).startswith("aaa")
    assert shortened(name).endswith("bbb")
    assert shortened(name[:LONGEST]) == name[:LONGEST]


def test_settings_of_matplotlib_stay():
    before = dict(plt.rcParams)
    fc.plot.scales(fc.Scales({"a": jnp.zeros(2)}))
    assert dict(plt.rcParams) == before


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(FlaxcleError) as error:
        fc.plot.scales(fc.Scales({"a": jnp.zeros(2)}))
    assert str(error.value) == (
        "pictures need matplotlib. What to do: pip install 'flaxcle[plot]'."
    )
