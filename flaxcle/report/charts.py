"""The charts as Vega-Lite specifications: data by name, colours by the style sheet.

The invariant: a chart holds no numbers of its own, and its colours are variables of the page, so
that it follows the reader's scheme, light or dark, and prints on white.
"""

from __future__ import annotations

from typing import Any

Chart = dict[str, Any]

BEFORE, AFTER, INK, FAINT, BAD = (
    f"var(--{name})" for name in ("before", "after", "ink", "line", "bad")
)
STATES = {"domain": ["before", "after"], "range": [BEFORE, AFTER]}
LOWEST = 0.001  # percent: less than one value of 100,000

CONFIG: Chart = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": "transparent"},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor"), INK),
        **dict.fromkeys(("domainColor", "tickColor", "gridColor"), FAINT),
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 240,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "orient": "top", "labelFontSize": 12},
    "title": {"color": INK, "anchor": "start", "fontSize": 13},
}


def chart(description: str, data: str, height: Any, **parts: Any) -> Chart:
    """A specification as wide as the page allows."""
    return {
        "description": description,
        "data": {"name": data},
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "height": height,
        "config": CONFIG,
        **parts,
    }


def number(field: str, title: str | None, **more: Any) -> Chart:
    """A quantitative channel."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def overview() -> Chart:
    """One measure of all weights, before and after, in the order of the network."""
    measures = (
        "SQNR of the weights, dB",
        "largest / median channel",
        "weights under half a step, %",
    )
    return chart(
        "What the integer grid does to the weights of each layer, before and after",
        "overview",
        220,
        params=[
            {
                "name": "measure",
                "value": measures[0],
                "bind": {"input": "select", "options": list(measures), "name": "Measure "},
            }
        ],
        transform=[{"fold": list(measures)}, {"filter": "datum.key === measure"}],
        mark={"type": "line", "point": {"size": 28}, "strokeWidth": 1.5},
        encoding={
            "x": number("number", "layer, from input to output", axis={"tickMinStep": 1}),
            "y": number("value", None, scale={"zero": False}),
            "color": {"field": "state", "type": "nominal", "scale": STATES, "title": None},
            "tooltip": [{"field": "layer"}, {"field": "state"}, {"field": "value"}],
        },
    )


def ranked(field: str, title: str, data: str, count: int) -> Chart:
    """Places as bars, in the order of the data."""
    kinds = {"domain": ["weights", "activations"], "range": [AFTER, "var(--other)"]}
    names = ("layer", "kind", "noise %", "alone dB", "without dB", "gain dB")
    return chart(
        title,
        data,
        40 + 19 * count,
        mark={"type": "bar", "height": 12},
        encoding={
            "y": {"field": "place", "type": "nominal", "sort": None, "title": None},
            "x": number(field, title),
            "color": {"field": "kind", "type": "nominal", "scale": kinds, "title": None},
            "tooltip": [{"field": name} for name in names],
        },
    )


def scales(count: int) -> Chart:
    """The spread of each group's scales."""
    fields = ("min", "lower quartile", "median", "upper quartile", "max")
    axis = {"scale": {"type": "log", "base": 2}, "axis": {"format": ".2~g"}}
    return chart(
        "The spread of the scales of each group",
        "scales",
        40 + 17 * count,
        encoding={
            "y": {"field": "label", "type": "nominal", "sort": None, "title": None},
            "tooltip": [{"field": name} for name in ("group", "channels", *fields)],
        },
        layer=[
            {
                "mark": {"type": "rule", "color": AFTER},
                "encoding": {"x": number("min", "scale", **axis), "x2": {"field": "max"}},
            },
            {
                "mark": {"type": "bar", "color": AFTER, "height": 9},
                "encoding": {
                    "x": number("lower quartile", "scale", **axis),
                    "x2": {"field": "upper quartile"},
                },
            },
            {
                "mark": {"type": "tick", "color": INK, "thickness": 2, "height": 12},
                "encoding": {"x": number("median", "scale", **axis)},
            },
        ],
    )


def memory() -> Chart:
    """Bytes in all, float against integers."""
    kinds = {"domain": ["float", "integer"], "range": [BEFORE, AFTER]}
    return chart(
        "Bytes of weights and activations, in float and as integers",
        "memory",
        110,
        mark={"type": "bar"},
        encoding={
            "y": {"field": "what", "type": "nominal", "sort": None, "title": None},
            "yOffset": {"field": "as", "sort": None},
            "x": number("MiB", "MiB"),
            "color": {"field": "as", "type": "nominal", "scale": kinds, "title": None},
            "tooltip": [{"field": "what"}, {"field": "as"}, {"field": "MiB"}],
        },
    )


PLACE: Chart = {"name": "place", "bind": {"element": "#place"}}


def boxes(state: str) -> Chart:
    """The weights of each channel of the chosen layer, in steps of its grid."""
    color = BEFORE if state == "before" else AFTER
    fields = ("channel", "min", "q1", "median", "q3", "max")
    tight = {"scale": {"nice": False, "zero": False}}
    wide = {"x": number("left", "output channel", **tight), "x2": {"field": "right"}}
    thin = {"x": number("channel", "output channel", **tight)}
    return chart(
        f"Box plot of the weights of each output channel, {state}, in steps of the integer grid",
        "boxes",
        190,
        title=f"weights of each channel, {state}",
        params=[PLACE],
        transform=[
            {"filter": f"datum.place == place && datum.state === '{state}'"},
            {"flatten": list(fields)},
            {"calculate": "datum.channel - 0.35", "as": "left"},
            {"calculate": "datum.channel + 0.35", "as": "right"},
        ],
        encoding={"tooltip": [{"field": name, "format": ".3"} for name in fields]},
        layer=[
            {
                "mark": {"type": "rule", "color": color, "opacity": 0.6},
                "encoding": thin | _span("min", "max"),
            },
            {"mark": {"type": "bar", "color": color}, "encoding": wide | _span("q1", "q3")},
            {
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1.5},
                "encoding": wide | {"y": number("median", "steps of the grid")},
            },
        ],
    )


def _span(low: str, high: str) -> Chart:
    return {"y": number(low, "steps of the grid"), "y2": {"field": high}}


def steps(kind: str) -> Chart:
    """How many values of the chosen layer lie on each step of the grid."""
    classes = {
        "domain": ["on the grid", "under half a step", "clipped"],
        "range": [AFTER, "var(--other)", BAD],
    }
    powers = {"values": [LOWEST, 0.01, 0.1, 1, 10, 100]}
    share = {"scale": {"type": "log", "domain": [LOWEST, 100], "clamp": True}, "axis": powers}
    here = f"datum.place == place && datum.kind === '{kind}'"
    return chart(
        f"Histogram of the {kind} on the integer grid: bars after, ticks before",
        "steps",
        190,
        title=f"{kind} on the integer grid (ticks: before)",
        params=[PLACE],
        transform=[
            {"filter": here},
            {"flatten": ["step", "share"]},
            {
                "calculate": "datum.step < datum.low || datum.step > datum.high ? 'clipped' : "
                "datum.step === 0 && datum.width === 1 ? 'under half a step' : 'on the grid'",
                "as": "fate",
            },
            {"calculate": "datum.step - datum.width / 2", "as": "left"},
            {"calculate": "datum.step + datum.width / 2", "as": "right"},
        ],
        encoding={"tooltip": [{"field": name} for name in ("state", "step", "share", "fate")]},
        layer=[
            {
                "transform": [{"filter": "datum.state === 'after'"}],
                "mark": {"type": "bar"},
                "encoding": {
                    "x": number("left", "step"),
                    "x2": {"field": "right"},
                    "y": number("share", "% of values", **share),
                    "y2": {"datum": LOWEST},
                    "color": {"field": "fate", "type": "nominal", "scale": classes, "title": None},
                },
            },
            {
                "transform": [{"filter": "datum.state === 'before'"}],
                "mark": {"type": "rule", "color": BEFORE, "strokeWidth": 1.5},
                "encoding": {
                    "x": number("left", "step"),
                    "x2": {"field": "right"},
                    "y": number("share", "% of values", **share),
                },
            },
        ],
    )
