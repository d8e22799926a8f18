"""Names of groups: the modules that make the channels, and those that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flaxcle.paths import parent, strip_collection
from flaxcle.spec import Group, Site

SHOWN = 3


def group_name(group: Group, ranks: Mapping[str, int]) -> str:
    """`'Conv_0 -> Conv_1'`; readers in the module of the first maker are named from there.

    >>> rows = [Site("params/b/ln/scale", (0,)), Site("params/b/query/kernel", (0,), -1)]
    >>> group_name(Group("?", (8,), rows), {"params/b/ln/scale": 1, "params/b/query/kernel": 2})
    'b/ln -> query'
    """
    makers, readers = _modules(group.producers, ranks), _modules(group.consumers, ranks)
    if not makers or not readers:
        return _listed(makers or readers)
    home = parent(makers[0])
    near = [name.removeprefix(f"{home}/") if home else name for name in readers]
    return f"{_listed(makers)} -> {_listed(near)}"


def _modules(sites: Sequence[Site], ranks: Mapping[str, int]) -> list[str]:
    """The modules of the kernels; where there is none, of all the leaves."""
    kernels = [site for site in sites if ranks[site.path] > 1] or list(sites)
    names = [strip_collection(site.path) for site in kernels]
    return list(dict.fromkeys(parent(name) or name for name in names))


def _listed(names: Sequence[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{names[0]} + {len(names) - 1} more"
