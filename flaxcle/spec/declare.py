"""The declared spec: chains of names, from producer to consumer, become groups.

    (A, norm, B, C)  ->  A -> B with the norm as a member,  B -> C

An element of a chain is a name, or a tuple of names that share one scale. Kernels cut a chain into
links; B's kernel is divided along its in-axis by the first link's scale and multiplied along its
out-axis by the second's. The invariant: everything is read from names and shapes before anything
is computed, and a chain that does not fit is an error, never a smaller group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from flaxcle.errors import SpecError
from flaxcle.paths import PyTree, named_leaves, shape_of
from flaxcle.spec.check import check_fit
from flaxcle.spec.elements import Layer, read_layer
from flaxcle.spec.links import Link, group_of
from flaxcle.spec.table import Group, Pair, Site, Spec, channels, normal_axes

_EXAMPLE = "[('Conv_0', 'Conv_1'), ('Conv_1', 'BatchNorm_1', 'Dense_0')]"
_BATCH_NORM = re.compile(r"batch_?norm|(^|/)bn", re.IGNORECASE)


def groups_from_pairs(pairs: Iterable[Pair], params: PyTree) -> tuple[Group, ...]:
    """The groups that chains of names declare; `Spec.from_pairs` documents the syntax."""
    leaves = named_leaves(params)
    links = [link for chain in _chains(pairs) for link in _links(chain, leaves)]
    turned: dict[str, bool] = {}
    groups = _unique([group_of(link, turned) for link in links])
    _check_claims(groups, leaves)
    check_fit(Spec(groups), params)
    return groups


def _chains(pairs: Iterable[Pair]) -> list[Pair]:
    chains = [] if isinstance(pairs, str) else list(pairs)
    if not chains:
        raise SpecError(
            f"no pairs are given, got {pairs!r}", then=f"write a list of chains, as in {_EXAMPLE}"
        )
    for chain in chains:
        if isinstance(chain, str) or not isinstance(chain, Sequence) or len(chain) < 2:
            raise SpecError(
                "a chain is a sequence of at least two names, from producer to consumer",
                where=f"got {chain!r}",
                then=f"write a list of chains, as in {_EXAMPLE}",
            )
    return chains


def _links(chain: Pair, leaves: Mapping[str, Any]) -> Iterator[Link]:
    """Cuts a chain where a kernel reads the channels and makes new ones."""
    elements = [_element(element, leaves) for element in chain]
    if not any(layer.source for layer in elements[0]):
        raise _no_end("start", chain[0], "makes no channels: it has no kernel and no scale")
    if not all(layer.kernel for layer in elements[-1]):
        raise _no_end("end", chain[-1], "does not read channels with a kernel")
    for layer in elements[0]:
        if "at" in layer.options:
            raise _no_end("start", f"{layer.name}[at=...]", "says where a consumer reads")
    producers, between = elements[0], ()
    for element in elements[1:]:
        if not any(layer.kernel for layer in element):
            between += element
            continue
        _check_tuple(element)
        link = Link(producers, between, tuple(layer for layer in element if layer.kernel))
        _check_names(link)
        _check_between(link)
        yield link
        producers, between = element, ()


def _element(element: str | Sequence[str], leaves: Mapping[str, Any]) -> tuple[Layer, ...]:
    names = (element,) if isinstance(element, str) else element
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) for n in names):
        raise SpecError(
            "an element of a chain is a name, or a tuple of names that share one scale",
            where=f"got {element!r}",
            then=f"write a list of chains, as in {_EXAMPLE}",
        )
    return tuple(read_layer(name, leaves) for name in names)


def _no_end(end: str, element: str | Sequence[str], reason: str) -> SpecError:
    return SpecError(
        f"a chain can't {end} with {element!r}, which {reason}",
        then="put layers with a kernel at both ends (a norm with a scale may be the start)",
    )


def _check_tuple(element: Sequence[Layer]) -> None:
    """Inside a chain a tuple with kernels may list bias leaves, but no norms."""
    for layer in element:
        if not layer.kernel and not layer.is_vector:
            raise SpecError(
                f"{layer.name!r} has no kernel and shares a tuple with layers that have one",
                where=f"tuple {tuple(layer.name for layer in element)}",
                then="give it its own place in the chain; a tuple lists what shares one scale",
            )


def _check_names(link: Link) -> None:
    """A layer may be producer and consumer (a loop), but not twice the same."""
    count = Counter(layer.name for part in (link.producers, link.between) for layer in part)
    count |= Counter(layer.name for layer in link.consumers)
    if {layer.name for layer in link.producers} == {layer.name for layer in link.consumers}:
        count.update(layer.name for layer in link.consumers)
    for name, times in count.items():
        if times > 1:
            raise SpecError(
                f"{name!r} stands {times} times in one group",
                where=f"group {link.name!r}",
                then=f"name it once; for copies in a concat write '{name}[at=0+16]'",
            )


def _check_between(link: Link) -> None:
    """Only a BatchNorm with running statistics, an addition or an activation lets scales pass."""
    for layer in link.between:
        added = layer.is_vector and not layer.gain
        if layer.mean or added or not (layer.gain or layer.shifts):
            continue
        if _BATCH_NORM.search(layer.name):
            then = "pass the whole variables dict, so that the statistics are scaled too"
        else:
            then = "start a chain at the norm; leave a mere multiplication out of the chain"
        raise SpecError(
            f"a scale can't pass {layer.name!r}, which has no running statistics in this tree",
            where=f"group {link.name!r}",
            then=then,
        )


def _unique(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Numbers the groups of equal name."""
    seen: Counter[str] = Counter()
    out = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        out.append(group if number == 1 else replace(group, name=f"{group.name} #{number}"))
    return tuple(out)


def _check_claims(groups: Sequence[Group], leaves: Mapping[str, Any]) -> None:
    """Refuses two groups that multiply, or that divide, the same positions of a leaf."""
    claims: dict[tuple[str, bool], list[tuple[Group, Site]]] = {}
    for group in groups:
        for row in group.sites:
            claims.setdefault((row.path, row.power > 0), []).append((group, row))
    for (path, multiplied), rows in claims.items():
        shape = shape_of(leaves[path])
        for (one, first), (two, second) in combinations(rows, 2):
            if _overlap(first, second, shape):
                several = "consumers of one tensor" if multiplied else "producers of one sum"
                raise SpecError(
                    f"two groups claim the same axis of {path!r}",
                    where=f"shape {shape}, axes {first.axes} and {second.axes}, "
                    f"groups {one.name!r} and {two.name!r}",
                    then=f"list the {several} together in one tuple of one chain",
                )


def _overlap(one: Site, two: Site, shape: tuple[int, ...]) -> bool:
    first, second = normal_axes(one, len(shape)), normal_axes(two, len(shape))
    if first != second:
        return bool(set(first) & set(second))
    return bool(((channels(one, shape) >= 0) & (channels(two, shape) >= 0)).any())
