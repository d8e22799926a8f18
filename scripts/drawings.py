"""Draws the pictures of the explanations: `python scripts/drawings.py` writes docs/images/*.svg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
INK, GREY, MADE, READ = "#24292f", "#9aa4ae", "#c44e52", "#2a7f9e"
STYLE = f"""<style>
text {{ font: 15px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {INK} }}
.small {{ font-size: 13px; fill: #57606a }} .bold {{ font-weight: 600 }}
.made {{ fill: {MADE} }} .read {{ fill: {READ} }} .middle {{ text-anchor: middle }}
</style>"""


def text(x: float, y: float, words: str, kind: str = "", turn: int = 0) -> str:
    """A line of text; `turn` in degrees around its anchor."""
    turned = f' transform="rotate({turn} {x} {y})"' if turn else ""
    return f'<text x="{x}" y="{y}" class="{kind}"{turned}>{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = GREY, more: str = "") -> str:
    """A straight line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" {more}/>'


def dot(x: float, y: float, radius: float, fill: str, stroke: str = INK) -> str:
    """A circle."""
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}" stroke="{stroke}"/>'


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole SVG on a white card, which reads well in the dark theme too."""
    box = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", STYLE, box, *parts, "</svg>", ""])


def network(left: float, top: float) -> Iterator[str]:
    """Two layers; everything that makes the middle channel and everything that reads it."""
    columns = [
        [(left + 110 * k, top + 70 * row + 35 * (3 - n)) for row in range(n)]
        for k, n in ((0, 3), (2, 3), (4, 2))
    ]
    chosen = columns[1][1]
    for one, two in ((0, 1), (1, 2)):
        for start in columns[one]:
            for end in columns[two]:
                color = MADE if end == chosen else READ if start == chosen else GREY
                wide = 'stroke-width="3"' if color != GREY else 'stroke-width="1"'
                yield line(*start, *end, color, wide)
    for k, column in enumerate(columns):
        for node in column:
            yield dot(*node, 18, "#fff3d6" if node == chosen else "#eef1f4")
            yield text(node[0], node[1] + 5, ("x", "relu", "y")[k], "small middle")
    yield text(left + 92, top - 24, "× s", "bold made middle")
    yield text(left + 348, top - 24, "÷ s", "bold read middle")
    yield text(left + 220, top + 200, "relu(s · h) = s · relu(h)", "bold middle")
    yield text(left + 220, top + 224, "one channel is s times larger inside,", "small middle")
    yield text(left + 220, top + 242, "and no output changes", "small middle")


def orbit(left: float, top: float, size: float) -> Iterator[str]:
    """All points that one scale reaches, in logarithms of the two ranges."""
    bottom, right = top + size, left + size
    yield line(left, bottom, right + 10, bottom, INK)
    yield line(left, bottom, left, top - 10, INK)
    yield text(left + size / 2, bottom + 24, "range where it is made (log)", "small middle made")
    middle = top + size / 2
    yield text(left - 14, middle, "range where it is read (log)", "small middle read", -90)
    yield line(left, bottom, right, top, GREY, 'stroke-dasharray="5 5"')
    yield text(right - 6, top - 8, "equal ranges", "small middle")
    yield line(left + 20, top + 20, right - 20, bottom - 20, INK, 'stroke-width="2.5"')
    yield text(left + 38, top + 26, "all one function", "small", 45)
    yield dot(right - 42, bottom - 42, 8, MADE)
    yield text(right - 30, bottom - 50, "as trained", "bold made")
    yield dot(left + size / 2, middle, 8, READ)
    yield text(left + size / 2 - 90, middle + 16, "equalized", "bold read")


def grid_row(
    left: float, y: float, name: str, weights: Sequence[float], step: float, color: str
) -> Iterator[str]:
    """Weights above a grid of 15 points, and where they are rounded to."""
    unit = 26.0
    centre = left + 7.5 * unit
    yield text(left - 96, y + 5, name, "small")
    yield line(centre - 7 * unit, y, centre + 7 * unit, y, GREY)
    for k in range(-7, 8):
        height = 9 if k == 0 else 6
        yield line(centre + k * unit, y - height, centre + k * unit, y + height, GREY)
    for weight in weights:
        exact, rounded = weight / step, round(weight / step)
        yield line(centre + exact * unit, y - 24, centre + rounded * unit, y, color)
        yield dot(centre + exact * unit, y - 24, 4.5, "#ffffff", color)
        yield dot(centre + rounded * unit, y, 4.5, color, color)


def collapse() -> Iterator[str]:
    """Two channels on one grid, before and after; drawn with 4 bits."""
    large, small = (-6.9, -3.7, 1.6, 4.8, 7.0), (-0.42, -0.21, 0.12, 0.30, 0.38)
    for k, (title, scales, color) in enumerate(
        (
            ("before: one step for both channels", (1, 1), MADE),
            ("after: the kernel that reads them makes up for it", (0.25, 4.1), READ),
        )
    ):
        left, top = 130, 190 * k
        channels = [[w * s for w in ws] for ws, s in zip((large, small), scales, strict=True)]
        step = max(abs(w) for ws in channels for w in ws) / 7
        yield text(left, top + 34, title, f"bold {'made' if k == 0 else 'read'}")
        for row, weights in enumerate(channels):
            yield from grid_row(
                left, top + 86 + 64 * row, f"channel {row + 1}", weights, step, color
            )
    yield text(130, 390, "○ the weight, ● what is left of it", "small")


def main() -> None:
    """Writes all pictures."""
    for name, width, height, title, parts in (
        ("one_channel", 520, 330, "A factor moves through a ReLU", network(40, 70)),
        ("orbit", 350, 330, "All the ranges that one scale reaches", orbit(60, 50, 220)),
        ("one_grid", 560, 406, "Two channels on one integer grid", collapse()),
    ):
        path = IMAGES / f"{name}.svg"
        path.write_text(picture(width, height, title, [*parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
