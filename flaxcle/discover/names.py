"""Names of groups: the modules that make the channels, and those that read them.

    EncoderBlock_0/LayerNorm_0 -> attention/query, key, value

A module stands for its kernel; a leaf is named itself where its module holds several kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from flaxcle.paths import parent, strip_collection
from flaxcle.spec import Group, Site

SHOWN = 3
WIDTH = 48


def module_names(kernels: Collection[str]) -> dict[str, str]:
    """The name of each kernel: its module, or the leaf where a module holds several kernels.

    >>> module_names(["params/Conv_0/kernel", "block/up", "block/down"])
    {'params/Conv_0/kernel': 'Conv_0', 'block/up': 'block/up', 'block/down': 'block/down'}
    """
    crowded = Counter(parent(path) for path in kernels)
    return {
        path: strip_collection(parent(path) if crowded[parent(path)] == 1 else path) or path
        for path in kernels
    }


def group_name(group: Group, modules: Mapping[str, str]) -> str:
    """`'Conv_0 -> Conv_1'`; what shares a module with its neighbour is named from there.

    >>> rows = [Site("params/b/ln/scale", (0,)), Site("params/b/att/query/kernel", (0,), -1),
    ...         Site("params/b/att/key/kernel", (0,), -1)]
    >>> group_name(Group("?", (8,), rows), module_names([rows[1].path, rows[2].path]))
    'b/ln -> att/query, key'
    """
    makers, readers = _modules(group.producers, modules), _modules(group.consumers, modules)
    first = _listed(makers, "")
    if not makers or not readers:
        return first or _listed(readers, "")
    return f"{first} -> {_listed(readers, parent(makers[0]))}"


def _modules(sites: Sequence[Site], modules: Mapping[str, str]) -> list[str]:
    """The modules of the kernels; where there is none, of all the leaves."""
    names = [modules[site.path] for site in sites if site.path in modules]
    if not names:
        names = [strip_collection(parent(site.path) or site.path) for site in sites]
    return list(dict.fromkeys(names))


def _listed(names: Sequence[str], home: str) -> str:
    homes = [home, *(parent(name) for name in names)]
    parts = [_near(name, near) for name, near in zip(names, homes, strict=False)]
    if (len(parts) <= SHOWN and sum(map(len, parts)) <= WIDTH) or len(parts) < 2:
        return ", ".join(parts)
    return f"{parts[0]} + {len(parts) - 1} more"


def _near(name: str, home: str) -> str:
    return name.removeprefix(f"{home}/") if home else name
