"""Specs as JSON text: one row a line, so that a diff shows which row changed.

    {"flaxcle_spec": 1, "groups": [{"name", "shape", "held", "sites": [{"path", "axes", "power",
     "index"?: {"shape", "runs"}}]}], "blocked": [...], "unused": [...]}

Powers are text ("-1", "1/2"), indices are runs. The invariant: `spec_from_json(spec_to_json(s))`
equals `s`, and text that says anything else than version 1 does is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from fractions import Fraction
from typing import Any, NoReturn

from flaxcle.errors import SpecError
from flaxcle.spec.index import Index, Run
from flaxcle.spec.table import Blocked, Group, Site, Spec

VERSION = 1
_RUN = len(Run._fields)


def spec_to_json(spec: Spec) -> str:
    """The spec as JSON text; `Spec.to_json` documents it."""
    parts = [
        f'"flaxcle_spec": {VERSION}',
        f'"groups": {_rows(map(_group_text, spec.groups), 1)}',
        f'"blocked": {_rows((json.dumps(asdict(row)) for row in spec.blocked), 1)}',
        f'"unused": {_rows(map(json.dumps, spec.unused), 1)}',
    ]
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def spec_from_json(text: str) -> Spec:
    """The spec that `spec_to_json` wrote.

    Raises:
        SpecError: the text is no JSON, of another version, or lacks fields; the place is named.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise SpecError(
            "the text of a spec is not JSON", where=str(error), then="pass what Spec.to_json wrote"
        ) from error
    version = data.get("flaxcle_spec") if isinstance(data, dict) else None
    if type(version) is not int or version != VERSION:
        raise SpecError(
            f"can't read a spec of version {version!r}",
            where=f"this flaxcle reads version {VERSION}, field 'flaxcle_spec'",
            then="pass what Spec.to_json wrote, or update flaxcle",
        )
    data = _record(data, "the spec", flaxcle_spec=int, groups=list, blocked=list, unused=list)
    return Spec(
        tuple(_group(row, f"groups[{i}]") for i, row in enumerate(data["groups"])),
        tuple(_blocked(row, f"blocked[{i}]") for i, row in enumerate(data["blocked"])),
        tuple(_typed(path, str, f"unused[{i}]") for i, path in enumerate(data["unused"])),
    )


def _rows(rows: Any, depth: int) -> str:
    """A JSON list with a line for each row."""
    lines = [f"{'  ' * (depth + 1)}{row}" for row in rows]
    return "[\n" + ",\n".join(lines) + f"\n{'  ' * depth}]" if lines else "[]"


def _group_text(group: Group) -> str:
    head = {"name": group.name, "shape": group.shape, "held": group.held}
    sites = _rows((json.dumps(_site_data(site)) for site in group.sites), 2)
    return f'{json.dumps(head)[:-1]}, "sites": {sites}}}'


def _site_data(site: Site) -> dict[str, Any]:
    row: dict[str, Any] = {"path": site.path, "axes": site.axes, "power": str(site.power)}
    if site.index is not None:
        row["index"] = {"shape": site.index.shape, "runs": site.index.runs}
    return row


def _group(row: Any, where: str) -> Group:
    row = _record(row, where, name=str, shape=list, held=bool, sites=list)
    sites = tuple(_site(site, f"{where}.sites[{i}]") for i, site in enumerate(row["sites"]))
    return Group(row["name"], _integers(row["shape"], f"{where}.shape"), sites, row["held"])


def _site(row: Any, where: str) -> Site:
    optional = {"index": dict} if isinstance(row, dict) and "index" in row else {}
    row = _record(row, where, path=str, axes=list, power=str, **optional)
    try:
        power = Fraction(row["power"])
    except (ValueError, ZeroDivisionError):
        _refuse(f"{where}.power", f"a fraction such as '-1' or '1/2', got {row['power']!r}")
    index = _index(row["index"], f"{where}.index") if optional else None
    return Site(row["path"], _integers(row["axes"], f"{where}.axes"), power, index)


def _index(row: Any, where: str) -> Index:
    row = _record(row, where, shape=list, runs=list)
    runs = [_integers(run, f"{where}.runs[{i}]") for i, run in enumerate(row["runs"])]
    for i, run in enumerate(runs):
        if len(run) != _RUN:
            _refuse(f"{where}.runs[{i}]", f"{_RUN} numbers {Run._fields}, got {list(run)}")
    return Index(_integers(row["shape"], f"{where}.shape"), tuple(Run(*run) for run in runs))


def _blocked(row: Any, where: str) -> Blocked:
    types = {field.name: int if field.name == "axis" else str for field in fields(Blocked)}
    return Blocked(**_record(row, where, **types))


def _record(row: Any, where: str, **types: Callable[..., Any]) -> dict[str, Any]:
    """A JSON object with exactly these fields."""
    if not isinstance(row, dict) or set(row) != set(types):
        got = sorted(row) if isinstance(row, dict) else row
        _refuse(where, f"an object with the fields {sorted(types)}, got {got}")
    for name, kind in types.items():
        _typed(row[name], kind, f"{where}.{name}")
    return row


def _integers(row: Any, where: str) -> tuple[int, ...]:
    return tuple(_typed(number, int, where) for number in _typed(row, list, where))


def _typed(value: Any, kind: Any, where: str) -> Any:
    if type(value) is not kind:
        _refuse(where, f"{kind.__name__}, got {value!r}")
    return value


def _refuse(where: str, wanted: str) -> NoReturn:
    raise SpecError(
        "a field of the spec is missing or malformed",
        where=f"{where} must be {wanted}",
        then="pass what Spec.to_json wrote",
    )
