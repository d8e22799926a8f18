"""The page: findings as one HTML document.

The invariant: answers, advice, tables and the network are plain HTML, which needs no script.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flaxcle.report.advice import advices
from flaxcle.report.answers import answers
from flaxcle.report.assets import own, tables_module, vega_script
from flaxcle.report.data import Findings, Node, Side
from flaxcle.report.headline import arithmetic
from flaxcle.report.html import Markup, as_json, data_table, joined, shown, tag
from flaxcle.report.numbers import noise_table, numbers
from flaxcle.report.places import Place, find_places, range_table
from flaxcle.report.rails import Rails

SECTIONS = {
    "next": "What to do next",
    "headline": "Result",
    "network": "Network",
    "sensitivity": "Sensitivity",
    "layers": "Layer by layer",
    "ranges": "Ranges",
    "scales": "Scales",
    "memory": "Memory",
    "stages": "Stages",
}
WORDS = {
    "scaled": "scaled",
    "held": "held",
    "undeclared": "could be scaled",
    "blocked": "blocked",
}


def render(findings: Findings) -> str:
    """The document."""
    return _Page(findings).document()


class _Page:
    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.places = find_places(findings.nodes, findings.after)
        self.noise = noise_table(findings.sensitivity)
        self.ranges = range_table(findings)

    def document(self) -> str:
        """The whole page."""
        sections = {name: getattr(self, f"_{name}")() for name in SECTIONS}
        present = {name: body for name, body in sections.items() if body}
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", self.findings.title),
            tag("style", Markup(own("style.css"))),
        )
        imports = as_json({"imports": {"datatables": tables_module()}})
        body = tag(
            "body",
            tag("header", *self._top(present)),
            tag("main", *(_section(name, body) for name, body in present.items())),
            tag(
                "script",
                numbers(self.findings, self.places, self.noise, self.ranges),
                type="application/json",
                id="numbers",
            ),
            tag("script", Markup(vega_script())),
            tag("script", imports, type="importmap"),
            tag("script", Markup(own("glue.js")), type="module"),
        )
        return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"

    def _top(self, present: dict[str, Any]) -> Iterator[Markup]:
        links = (tag("li", tag("a", SECTIONS[name], href=f"#{name}")) for name in present)
        config = self.findings.config
        words = f"{arithmetic(config)}, weights {config.weight_granularity.replace('_', ' ')}"
        save = tag("a", "all numbers as JSON", id="save", href="#", download="report.json")
        yield tag("h1", self.findings.title)
        yield tag("p", f"{words}. Charts and tables are drawn from ", save, ".", class_="soft")
        yield tag("nav", tag("ul", *links), aria_label="Sections")
        yield tag("ul", *map(_answer, answers(self.findings)), class_="answers")

    def _headline(self) -> Markup:
        table = data_table("headline-table", self.findings.headline, "Float against integers")
        text = "Agreement: the share of inputs on which the largest output is the float network's. "
        text += "SQNR: the power of the outputs over that of their error."
        return joined(table, tag("p", text, class_="soft"), _chart("overview"))

    def _next(self) -> Markup:
        items = (
            tag("li", advice.text, tag("pre", tag("code", advice.code)) if advice.code else "")
            for advice in advices(self.findings)
        )
        return tag("ol", *items, class_="next")

    def _network(self) -> Markup:
        rails = Rails(self.findings.nodes)
        picks = {place.layer: number for number, place in reversed(list(enumerate(self.places)))}
        rows = (
            tag(
                "li",
                rails.row(number),
                _described(node, picks.get(node.layer), rails),
                style=f"padding-left: {rails.width}px",
            )
            for number, node in enumerate(self.findings.nodes)
        )
        region = tag(
            "div",
            tag("ol", *rows, class_="network"),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Layers from input to output",
        )
        text = "From input to output. A line has the colour of the scales that pass along it; side "
        text += "lines are read further down. Choose a layer to see its numbers."
        blocked = data_table(
            "blocked", self.findings.blocked, "Axes that no scale can move, by reason"
        )
        return joined(tag("p", text, class_="soft"), _key(), tag("figure", region), blocked)

    def _sensitivity(self) -> Markup:
        text = (
            "Left: each place quantized alone, and its share of the noise of all. Right: all but "
        )
        text += "this place quantized, and what that wins."
        drawn = tag("div", _chart("noise"), _chart("gains"), class_="charts")
        table = data_table("sensitivity-table", self.noise, "All places, the noisiest first")
        return joined(tag("p", text, class_="soft"), drawn, table)

    def _layers(self) -> Markup:
        worst = self._noisiest()
        options = (
            tag("option", place.label, value=k, selected="" if k == worst else None)
            for k, place in enumerate(self.places)
        )
        select = tag("label", "Layer ", tag("select", *options, id="place"))
        names = ("boxes-before", "boxes-after", "steps-weights", "steps-activations")
        drawn = tag("div", *map(_chart, names), class_="charts", id="drawn")
        numbers = (self._numbers_of(k, place) for k, place in enumerate(self.places))
        return joined(tag("p", select, id="picker"), *numbers, drawn)

    def _numbers_of(self, number: int, place: Place) -> Markup:
        names = (place.weight, *place.activations)
        rows = [row for row in self.ranges if row["tensor"] in names]
        columns = [c for c in self.ranges.columns if c != "layer"]
        head = tag("tr", *(tag("th", column, scope="col") for column in columns))
        body = (tag("tr", *(tag("td", _text(row[c])) for c in columns)) for row in rows)
        grid = tag("table", tag("thead", head), tag("tbody", *body))
        box = tag("div", grid, class_="scroll", tabindex=0, role="region", aria_label=place.label)
        return tag("div", box, data_place=number, data_weight=place.weight)

    def _noisiest(self) -> int:
        """The place whose weights make the most noise."""
        layers = [row["layer"] for row in self.noise if row["kind"] == "weights"]
        numbers = {place.layer: k for k, place in reversed(list(enumerate(self.places)))}
        return next((numbers[layer] for layer in layers if layer in numbers), 0)

    def _ranges(self) -> Markup:
        return data_table("ranges-table", self.ranges, "Every tensor on its grid")

    def _scales(self) -> Markup:
        table = data_table("scales-table", self.findings.scales, "The scales of each group")
        return joined(_chart("scales"), table)

    def _memory(self) -> Markup:
        text = "Weights as they are stored; activations as the layers of one batch read and write "
        text += "them."
        table = data_table("memory-table", self.findings.memory, "Bytes by layer")
        return joined(tag("p", text, class_="soft"), _chart("memory"), table)

    def _stages(self) -> Markup | None:
        stages = self.findings.stages
        if stages is None:
            return None
        return data_table("stages-table", stages, "The stages of the recipe")


def _section(name: str, body: Markup) -> Markup:
    title = tag("h2", SECTIONS[name], id=f"{name}-title")
    return tag("section", title, body, id=name, aria_labelledby=f"{name}-title")


def _answer(answer: Any) -> Markup:
    link = tag("a", answer.question, href=f"#{answer.section}")
    return tag("li", tag("h3", link), tag("p", answer.text), class_=answer.verdict)


def _chart(name: str) -> Markup:
    kind = " of-weights" if name.startswith("boxes") or name.endswith("-weights") else ""
    return tag("div", id=f"chart-{name}", class_=f"chart{kind}")


def _described(node: Node, pick: int | None, rails: Rails) -> Markup:
    """A layer in words."""
    name: Any = node.layer
    if pick is not None:
        name = tag("a", node.layer, href="#layers", data_pick=pick)
    detail = " ".join(part for part in (node.kind, node.detail, node.source) if part)
    sides = (("reads", node.reads), ("makes", node.makes))
    chips = (_chip(word, side, rails) for word, side in sides if side is not None and node.leaf)
    return tag(
        "div", name, " ", tag("span", detail, class_="soft"), tag("div", *chips), class_="what"
    )


def _chip(word: str, side: Side, rails: Rails) -> Markup:
    place = f" ({side.source})" if side.source else ""
    text = f"{word}: {side.reason}{place}" if side.reason else f"{word}: {WORDS[side.state]}"
    return tag("span", text, class_=f"chip {rails.colour(side)}", title=side.group or None)


def _key() -> Markup:
    texts = {
        "scaled g0": "scaled by a group",
        "undeclared": "could be scaled, not declared",
        "held": "held: could be scaled, measured to do harm",
        "blocked": "blocked",
    }
    return tag("div", *(tag("span", t, class_=f"chip {c}") for c, t in texts.items()), class_="key")


def _text(value: Any) -> str:
    return "\u2013" if value is None else shown(value)
