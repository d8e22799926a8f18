"""Names of groups: the modules that make the channels, and those that read them.

    EncoderBlock_0/LayerNorm_0 -> attention/query, key, value

A module stands for its kernel; a leaf is named itself where its module holds several kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from flaxcle.paths import parent, strip_collection
from flaxcle.spec import Group, Site

SHOWN = 3
WIDTH = 48


def group_name(group: Group, kernels: Collection[str]) -> str:
    """`'Conv_0 -> Conv_1'`; what shares a module with its neighbour is named from there.

    >>> rows = [Site("params/b/ln/scale", (0,)), Site("params/b/att/query/kernel", (0,), -1),
    ...         Site("params/b/att/key/kernel", (0,), -1)]
    >>> group_name(Group("?", (8,), rows), {rows[1].path, rows[2].path})
    'b/ln -> att/query, key'
    """
    makers, readers = _modules(group.producers, kernels), _modules(group.consumers, kernels)
    first = _listed(makers, "")
    if not makers or not readers:
        return first or _listed(readers, "")
    return f"{first} -> {_listed(readers, parent(makers[0]))}"


def _modules(sites: Sequence[Site], kernels: Collection[str]) -> list[str]:
    """The modules of the kernels; where there is none, of all the leaves."""
    crowded = Counter(parent(path) for path in kernels)
    chosen = [site.path for site in sites if site.path in kernels] or [s.path for s in sites]
    names = [
        parent(path) if parent(path) and crowded[parent(path)] < 2 else path for path in chosen
    ]
    return list(dict.fromkeys(strip_collection(name) for name in names))


def _listed(names: Sequence[str], home: str) -> str:
    homes = [home, *(parent(name) for name in names)]
    parts = [_near(name, near) for name, near in zip(names, homes, strict=False)]
    if len(parts) <= SHOWN and sum(map(len, parts)) <= WIDTH or len(parts) < 2:
        return ", ".join(parts)
    return f"{parts[0]} + {len(parts) - 1} more"


def _near(name: str, home: str) -> str:
    return name.removeprefix(f"{home}/") if home else name
