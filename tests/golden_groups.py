"""The groups of every network of the zoo, written out in `golden_groups.txt` and read by people.

    python tests/golden_groups.py

writes the file anew; look at the difference before you commit it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import conftest  # noqa: F401  (the settings of the suite, before jax is used)
from flaxcle import Group, Site, Spec, find_spec
from flaxcle.spec import Blocked
from zoo import build, networks

FILE = Path(__file__).with_suffix(".txt")


def written(spec: Spec) -> list[str]:
    """One line for each group, then one for each kind of reason, with its number of axes."""
    reasons = Counter(_reason(row) for row in spec.blocked)
    return [
        *(_group(group) for group in spec.groups),
        *(f"blocked {count}: {reason}" for reason, count in sorted(reasons.items())),
        *([f"unused: {', '.join(spec.unused)}"] if spec.unused else []),
    ]


def _group(group: Group) -> str:
    held = " held" if group.held else ""
    return f"{'x'.join(map(str, group.shape))}{held}: {' '.join(map(_site, group.sites))}"


def _site(site: Site) -> str:
    power = "" if site.power == 1 else "^-1" if site.power == -1 else f"^{site.power}"
    index = "" if site.index is None else "*"
    return f"{site.path}[{','.join(map(str, site.axes))}]{index}{power}"


def _reason(row: Blocked) -> str:
    return f"{row.reason} ({row.primitive})" if row.primitive else row.reason


def found(name: str) -> list[str]:
    """The lines of a network."""
    network = build(name)
    return written(find_spec(network.fn, network.params, *network.inputs))


def expected() -> dict[str, list[str]]:
    """The lines of every network in the file."""
    sections = FILE.read_text(encoding="utf-8").removeprefix("# ").split("\n\n# ")
    lines = [section.rstrip("\n").split("\n") for section in sections]
    return {name: rest for name, *rest in lines}


if __name__ == "__main__":
    parts = ["\n".join([f"# {name}", *found(name)]) for name in networks()]
    FILE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
