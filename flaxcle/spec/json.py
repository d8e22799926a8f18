"""Specs and scales as JSON text: one row a line, so that a diff shows which row changed.

    {"flaxcle_spec": 1, "groups": [{"name", "shape", "held", "sites": [{"path", "axes", "power",
     "index"?: {"shape", "runs"}}]}], "blocked": [...], "unused": [...]}
    {"flaxcle_scales": 1, "residual", "sweeps", "groups": [{"name", "shape", "log2", "kept"?}]}

Powers are text ("-1", "1/2"), indices are runs, `kept` lists positions. The invariant: reading what
was written gives an equal object, and text that says anything else than version 1 does is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from fractions import Fraction
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from flaxcle.errors import SpecError
from flaxcle.spec.index import Index, Run
from flaxcle.spec.scales import Scales
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
    data = _versioned(text, "a spec")
    data = _record(data, "the spec", flaxcle_spec=int, groups=list, blocked=list, unused=list)
    return Spec(
        tuple(_group(row, f"groups[{i}]") for i, row in enumerate(data["groups"])),
        tuple(_blocked(row, f"blocked[{i}]") for i, row in enumerate(data["blocked"])),
        tuple(_typed(path, str, f"unused[{i}]") for i, path in enumerate(data["unused"])),
    )


def scales_to_json(scales: Scales) -> str:
    """The scales as JSON text; `Scales.to_json` documents it."""
    rows = (json.dumps(_scale_data(scales, name)) for name in scales.log2)
    parts = [
        f'"flaxcle_scales": {VERSION}',
        f'"residual": {_shortest(scales.residual)}',
        f'"sweeps": {int(scales.sweeps)}',
        f'"groups": {_rows(rows, 1)}',
    ]
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def scales_from_json(text: str) -> Scales:
    """The scales that `scales_to_json` wrote.

    Raises:
        SpecError: the text is no JSON, of another version, or lacks fields; the place is named.
    """
    data = _versioned(text, "scales")
    types = {"flaxcle_scales": int, "residual": float, "sweeps": int, "groups": list}
    data = _record(data, "the scales", **types)
    log2, kept = {}, {}
    for i, row in enumerate(data["groups"]):
        name, log2[name], positions = _scale(row, f"groups[{i}]")
        if positions is not None:
            flags = np.isin(np.arange(log2[name].size), positions)
            kept[name] = jnp.asarray(flags.reshape(log2[name].shape))
    return Scales(log2, kept, data["residual"], data["sweeps"])


def _scale_data(scales: Scales, name: str) -> dict[str, Any]:
    log2 = np.asarray(scales.log2[name], np.float32)
    row = {"name": name, "shape": log2.shape, "log2": [_shortest(x) for x in log2.ravel()]}
    if name in scales.kept:
        row["kept"] = np.flatnonzero(np.asarray(scales.kept[name])).tolist()
    return row


def _shortest(number: Any) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(number)))


def _scale(row: Any, where: str) -> tuple[str, Any, tuple[int, ...] | None]:
    """Name, log2 scales and kept positions of a group."""
    optional = {"kept": list} if isinstance(row, dict) and "kept" in row else {}
    row = _record(row, where, name=str, shape=list, log2=list, **optional)
    shape = _integers(row["shape"], f"{where}.shape")
    values = [_typed(x, float, f"{where}.log2") for x in row["log2"]]
    if len(values) != math.prod(shape) or not all(map(math.isfinite, values)):
        _refuse(f"{where}.log2", f"{math.prod(shape)} finite numbers")
    kept = _integers(row["kept"], f"{where}.kept") if optional else None
    return row["name"], jnp.asarray(np.array(values, np.float32).reshape(shape)), kept


def _versioned(text: str, kind: str) -> dict[str, Any]:
    """The JSON object of a text that says version 1 of a kind: `a spec` or `scales`."""
    name = kind.split()[-1]
    wrote = f"pass what {name.title()}.to_json wrote"
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise SpecError(f"the text of {kind} is not JSON", where=str(error), then=wrote) from error
    version = data.get(f"flaxcle_{name}") if isinstance(data, dict) else None
    if type(version) is not int or version != VERSION:
        raise SpecError(
            f"can't read {kind} of version {version!r}",
            where=f"this flaxcle reads version {VERSION}, field 'flaxcle_{name}'",
            then=f"{wrote}, or update flaxcle",
        )
    return data


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
        "a field of the text is missing or malformed",
        where=f"{where} must be {wanted}",
        then="pass what to_json wrote",
    )
