"""Specs for people: the table behind `print(spec)`, and the reasons behind `spec.explain`.

A row reads `×s kernel[-1]` (multiplied by the scale along the last axis), `÷s` or `×s^2`; rows of
one module stand together, modules that differ in one part of their name share it in braces. The
invariant: every row of the spec is shown, in lines of at most 110 columns where names allow it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import takewhile

import numpy as np

from flaxcle.errors import PathError, closest
from flaxcle.paths import leaf_name, parent, resolve, strip_collection
from flaxcle.spec.index import Index, Run
from flaxcle.spec.table import Blocked, Group, Site, Spec

WIDTH = 110
_SHOWN = 4
_GLUE = "\u00a0"  # a space at which no line may break


def render_spec(spec: Spec) -> str:
    """The whole table as text: totals, groups, what is blocked and why, what is unused."""
    lines = [totals(spec), *([""] if spec.groups else [])]
    widest = max((len(group.name) for group in spec.groups), default=0)
    for group in spec.groups:
        lines += _heading(group, widest) + _marked_rows(group.sites, indent=4)
    lines += _blocked_lines(spec.blocked)
    if spec.unused:
        names = _some([strip_collection(path) for path in spec.unused])
        lines += ["", *_wrapped(f"unused: {names}", indent=2)]
    return "\n".join(lines).replace(_GLUE, " ")


def explain_path(spec: Spec, path: str) -> str:
    """For one leaf, or each leaf of a module: what moves its axes, and what pins them.

    Raises:
        PathError: no row of the spec names it.
    """
    rows = [(site, group) for group in spec.groups for site in group.sites]
    known = [*(site.path for site, _ in rows), *(row.path for row in spec.blocked), *spec.unused]
    lines = []
    for leaf in _resolved(path, list(dict.fromkeys(known))):
        lines.append(leaf)
        for site, group in rows:
            if site.path == leaf:
                lines += _explained(site, group)
        lines += [line for row in spec.blocked if row.path == leaf for line in _reason(row)]
        if leaf in spec.unused:
            lines.append("  unused: no output depends on it")
    return "\n".join(lines).replace(_GLUE, " ")


def totals(spec: Spec) -> str:
    """How many groups, scales, leaves and blocked axes there are."""
    parts = [
        _count(len(spec.groups), "group"),
        _count(spec.scales, "independent scale"),
        f"{_count(len(spec.paths), 'leaf')} scaled",
    ]
    held = sum(group.held for group in spec.groups)
    parts += [f"{_count(held, 'group')} held"] if held else []
    parts += [f"{_count(len(spec.blocked), 'axis')} blocked"] if spec.blocked else []
    parts += [f"{_count(len(spec.unused), 'leaf')} unused"] if spec.unused else []
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    plural = {"leaf": "leaves", "axis": "axes"}.get(noun, noun + "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _resolved(path: str, known: Sequence[str]) -> list[str]:
    try:
        return resolve(path, known)
    except PathError as error:
        raise PathError(
            f"the spec says nothing about {path!r}",
            where="it is neither scaled nor blocked nor unused",
            then=f"the closest of its leaves are {closest(path, map(strip_collection, known))}",
        ) from error


def _heading(group: Group, widest: int) -> list[str]:
    line = f"{group.name.ljust(widest)}  {extent(group)}"
    return [line] if len(line) <= WIDTH else [group.name, f"    {extent(group)}"]


def extent(group: Group) -> str:
    """The channels of a group, and whether it is held."""
    size = "×".join(map(str, group.shape)) or "1"
    held = ", held" if group.held else ""
    return f"{size} channel{'' if group.size == 1 else 's'}{held}"


def _marked_rows(sites: Iterable[Site], indent: int) -> list[str]:
    """The rows by power: on one line, or a paragraph for each power."""
    parts = [f"{mark}  {rows}" for mark, rows in marked_rows(sites)]
    line = " " * indent + "   ".join(parts)
    if len(line) <= WIDTH:
        return [line] if parts else []
    return [line for part in parts for line in _wrapped(" " * indent + part, indent=indent + 4)]


def marked_rows(sites: Iterable[Site]) -> list[tuple[str, str]]:
    """What is multiplied with each power of the scale, producers first: (`'×s'`, rows)."""
    marked: dict[Fraction, list[Site]] = {}
    for site in sorted(sites, key=lambda site: -site.power):
        marked.setdefault(site.power, []).append(site)
    return [(_mark(power), "; ".join(_by_module(rows))) for power, rows in marked.items()]


def _mark(power: Fraction) -> str:
    sign, size = ("×" if power > 0 else "÷"), abs(power)
    return f"{sign}s" if size == 1 else f"{sign}s^{size}"


def _by_module(rows: Sequence[Site]) -> list[str]:
    """`'Conv_0: kernel[-1], bias[-1]'` for each module, equal ones merged."""
    modules: dict[str, list[str]] = {}
    for row in rows:
        name = strip_collection(row.path)
        modules.setdefault(parent(name), []).append(f"{leaf_name(name)}{_place(row)}")
    alike: dict[str, list[str]] = {}
    for module, leaves in modules.items():
        alike.setdefault(", ".join(leaves), []).append(module)
    return [
        f"{name}: {leaves}" if name else leaves
        for leaves, names in alike.items()
        for name in _merged(names)
    ]


def _place(site: Site) -> str:
    axes = ",".join(map(str, site.axes))
    words = index_words(site.index) if site.index is not None else ""
    return f"[{axes}]" + (f" ({words})".replace(" ", _GLUE) if words else "")


def index_words(index: Index) -> str:
    """An index in words.

    >>> index_words(Index((784,), (Run(0, 16, tile=49),)))
    'all channels 49 times over'
    >>> index_words(Index((48,), (Run(-1, 16), Run(0, 16), Run(-1, 16))))
    'channels 0..15 at 16..31'
    """
    if len(index.runs) == 1:
        return _run_words(index.runs[0])
    size = _group_size(index)
    if size:
        return f"groups of {size}"
    first = index.runs[0]
    blocks = [first._replace(start=at * first.length) for at in range(len(index.runs))]
    if list(index.runs) == blocks and first.step == first.repeat == 1:
        return f"blocks of {first.length} channels, each {first.tile} times"
    pieces, at = [], 0
    for run in index.runs:
        if run.start >= 0:
            pieces.append(f"{_span(run.start, run.last)} at {_span(at, at + run.size - 1)}")
        at += run.size
    plain = all(run.step == run.repeat == run.tile == 1 for run in index.runs if run.start >= 0)
    if plain and len(pieces) <= _SHOWN:
        return "channels " + ", ".join(pieces)
    channels = index.highest + 1
    if channels == index.positions == np.unique(np.asarray(index)).size:
        return f"{channels} channels permuted"
    return f"{channels} channels over {index.positions} positions"


def _run_words(run: Run) -> str:
    if run.length == 1:
        return f"channel {run.start} everywhere"
    if run.repeat > 1 and run.tile == 1:
        return f"each channel {run.repeat} times"
    if run.tile > 1 and run.repeat == 1:
        return f"all channels {run.tile} times over"
    return "" if run.size == run.length else f"{run.length} channels over {run.size} positions"


def _group_size(index: Index) -> int:
    """How many channels each output of a grouped convolution reads; 0 for any other map."""
    ids = np.asarray(index)
    if ids.ndim != 2 or (ids < 0).any():
        return 0
    inside = ids.shape[0]
    expected = ids[0] + np.arange(inside)[:, None]
    blocks = ids[0] % inside == 0
    return inside if blocks.all() and np.array_equal(ids, expected) else 0


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


def _merged(names: Sequence[str]) -> list[str]:
    """`['a_1/c', 'a_2/c']` -> `['a_{1,2}/c']`."""
    buckets: list[list[list[str]]] = []
    for parts in (name.split("/") for name in names):
        home = next((b for b in buckets if len(_varying([*b, parts])) == 1), None)
        if home is None:
            buckets.append([parts])
        else:
            home.append(parts)
    return [_braced(bucket) for bucket in buckets]


def _varying(rows: Sequence[Sequence[str]]) -> list[int]:
    """The places in which the rows differ; all of them when the lengths differ."""
    if len({len(row) for row in rows}) > 1:
        return [-1, -1]
    return [place for place, parts in enumerate(zip(*rows, strict=True)) if len(set(parts)) > 1]


def _braced(rows: Sequence[Sequence[str]]) -> str:
    parts = list(rows[0])
    for place in _varying(rows):
        choices = [row[place] for row in rows]
        same = takewhile(lambda letters: len(set(letters)) == 1, zip(*choices, strict=False))
        stem = "".join(letters[0] for letters in same).rstrip("0123456789")
        parts[place] = f"{stem}{{{','.join(choice[len(stem) :] for choice in choices)}}}"
    return "/".join(parts)


def _blocked_lines(blocked: Sequence[Blocked]) -> list[str]:
    """Blocked axes, one paragraph for each reason."""
    lines = ["", f"blocked: {_count(len(blocked), 'axis')}"] if blocked else []
    for number, reason, axes in blocked_rows(blocked):
        lines += _wrapped(f"{number:>4} × {reason}", indent=7)
        lines += _wrapped(f"{' ' * 7}{axes}", indent=7)
    return lines


def blocked_rows(blocked: Sequence[Blocked]) -> list[tuple[int, str, str]]:
    """Blocked axes by reason, the most frequent first: how many, why and where, which."""
    alike: dict[tuple[str, str], list[Blocked]] = {}
    for row in blocked:
        alike.setdefault((row.reason, row.primitive), []).append(row)
    found = []
    for (reason, primitive), rows in sorted(alike.items(), key=lambda item: -len(item[1])):
        cause = f" ({primitive})" if primitive and repr(primitive) not in reason else ""
        places = _some(dict.fromkeys(row.source for row in rows if row.source))
        axes = _some(f"{strip_collection(row.path)}[{row.axis}]" for row in rows)
        found.append((len(rows), f"{reason}{cause}{places and ', ' + places}", axes))
    return found


def _some(items: Iterable[str]) -> str:
    items = list(items)
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _explained(site: Site, group: Group) -> list[str]:
    others = [row for row in group.sites if row is not site]
    words = index_words(site.index) if site.index is not None else ""
    text = f"  {_axes(site.axes)}: {_mark(site.power)} of {group.name!r}, {extent(group)}"
    text += (f" ({words})" if words else "") + (", together with" if others else "")
    return [*_wrapped(text, indent=4), *_marked_rows(others, indent=4)]


def _axes(axes: Sequence[int]) -> str:
    names = ", ".join(map(str, axes))
    return f"axis {names}" if len(axes) == 1 else f"axes {names} jointly"


def _reason(row: Blocked) -> list[str]:
    place = [row.primitive, row.scope and f"in {row.scope}", row.source and f"at {row.source}"]
    where = " ".join(part for part in place if part)
    text = f"  axis {row.axis}: blocked, {row.reason}" + (f" ({where})" if where else "")
    return _wrapped(text, indent=4)


def _wrapped(text: str, indent: int) -> list[str]:
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.lstrip(),
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
