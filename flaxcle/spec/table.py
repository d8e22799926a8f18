"""The central table: which leaves a scale multiplies.

    leaf *= scale[index] ** power        broadcast along the leaf's other axes

A `Group` is one free positive scale array, its `Site`s are the leaves that it multiplies, a `Spec`
is all the groups. The invariant: everything here is static and hashable, holds no array values
and never depends on the weights' values, so a spec is a `jit`-static argument.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcle.errors import SpecError, closest
from flaxcle.paths import parent, strip_collection
from flaxcle.spec.index import Index

if TYPE_CHECKING:
    from flaxcle.paths import PyTree

Pair = Sequence["str | Sequence[str]"]


@dataclass(frozen=True)
class Site:
    """One row of the table: `leaf *= scale[index] ** power` along `axes`.

    Attributes:
        path: canonical path of the leaf, such as `'params/Conv_0/kernel'`.
        axes: the leaf's axes that carry the scale, jointly; negative axes count from the end.
        power: +1 for a producer, -1 for a consumer, other small rationals behind powers.
        index: for each position along `axes` the channel of the group, -1 for 'not scaled';
            `None` when the leaf's shape along `axes` is the group's shape. Arrays are accepted
            and stored as runs.

    Example:
        >>> Site("params/Dense_0/kernel", (-1,), 1)
        Site('params/Dense_0/kernel', axes=(-1,), power=1)
    """

    path: str
    axes: tuple[int, ...]
    power: Fraction = Fraction(1)
    index: Index | None = None

    def __post_init__(self) -> None:
        """Normalises the fields so that equal rows are equal objects."""
        axes = (self.axes,) if isinstance(self.axes, int) else self.axes
        object.__setattr__(self, "axes", tuple(int(axis) for axis in axes))
        object.__setattr__(self, "power", Fraction(self.power).limit_denominator(64))
        if self.index is not None and not isinstance(self.index, Index):
            object.__setattr__(self, "index", Index.of(self.index))
        if self.power == 0:
            raise SpecError("a site needs a power", where=f"{self.path!r} has power 0")

    def __repr__(self) -> str:
        """A row that fits on a line."""
        index = "" if self.index is None else f", index={self.index.shape}"
        return f"Site({self.path!r}, axes={self.axes}, power={self.power}{index})"


@dataclass(frozen=True)
class Group:
    """One free positive scale array and the leaves that it multiplies.

    Attributes:
        name: unique within a spec, `'Conv_0 -> Conv_1'`.
        shape: shape of the scale array, `(channels,)` nearly always.
        sites: the leaves; producers have a positive power.
        held: `solve` leaves the scale at 1 unless the group is selected (`Spec.select`). Residual
            groups that were discovered, not declared, are held: balancing their weight ranges was
            measured to lower int8 accuracy.

    Example:
        >>> group = Group("a -> b", (8,), (Site("a/kernel", (-1,), 1), Site("b/kernel", (-2,), -1)))
        >>> [site.path for site in group.producers]
        ['a/kernel']
    """

    name: str
    shape: tuple[int, ...]
    sites: tuple[Site, ...]
    held: bool = False

    def __post_init__(self) -> None:
        """Normalises the fields and refuses a group without rows."""
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "sites", tuple(self.sites))
        if not self.sites or 0 in self.shape:
            raise SpecError(
                "a group needs at least one site and one channel",
                where=f"group {self.name!r} has {len(self.sites)} sites and shape {self.shape}",
                then="name a producer and its consumers",
            )

    @property
    def size(self) -> int:
        """Number of independent scales."""
        return math.prod(self.shape)

    @property
    def producers(self) -> tuple[Site, ...]:
        """The sites that the scale multiplies."""
        return tuple(site for site in self.sites if site.power > 0)

    @property
    def consumers(self) -> tuple[Site, ...]:
        """The sites that the scale divides."""
        return tuple(site for site in self.sites if site.power < 0)


@dataclass(frozen=True)
class Blocked:
    """Why an axis of a leaf can't be rescaled.

    Attributes:
        path: the leaf.
        axis: its axis, from 0.
        reason: the sentence for the user.
        primitive: the JAX operation that pins the scale.
        scope: the module path of that operation, where there is one.
        source: `file:line` of the model's code.

    Example:
        >>> Blocked("params/Dense_0/kernel", 1, "gelu is not positively homogeneous", "tanh").axis
        1
    """

    path: str
    axis: int
    reason: str
    primitive: str = ""
    scope: str = ""
    source: str = ""


@dataclass(frozen=True)
class Spec:
    """Every scale that may move, and the reasons why the rest may not.

    Static and hashable: pass it to `jax.jit` as a static argument. `print(spec)` shows the table.

    Attributes:
        groups: the free scales.
        blocked: why an axis was not found to be scalable (empty for a declared spec).
        unused: leaves that no output depends on.

    Example:
        >>> params = {"a": {"kernel": np.ones((3, 4), "f")}, "b": {"kernel": np.ones((4, 2), "f")}}
        >>> spec = Spec.from_pairs([("a", "b")], params)
        >>> spec.groups[0].name, spec.scales
        ('a -> b', 4)
    """

    groups: tuple[Group, ...] = ()
    blocked: tuple[Blocked, ...] = field(default=(), repr=False)
    unused: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuses two groups of the same name."""
        for name in ("groups", "blocked", "unused"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        names = [group.name for group in self.groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecError("group names must be unique", where=f"{twice} occur more than once")

    def __str__(self) -> str:
        """The table, for people."""
        from flaxcle.spec.text import render_spec  # noqa: PLC0415  (text renders tables)

        return render_spec(self)

    def __rich__(self) -> Any:
        """What `rich.print` shows; rich calls it, so it is installed."""
        from rich.text import Text  # noqa: PLC0415  (an optional package)

        return Text(str(self))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from flaxcle.spec.html import spec_to_html  # noqa: PLC0415  (html renders tables)

        return spec_to_html(self)

    @property
    def scales(self) -> int:
        """Number of independent scales in all the groups."""
        return sum(group.size for group in self.groups)

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair], params: PyTree) -> Spec:
        """The declared form: chains of module names, from producer to consumer.

        Each element of a chain is the name of a module or leaf, or a sequence of names that share
        one scale (the producers of a residual sum, the consumers of one tensor). Consecutive
        layers with a kernel make a group; a BatchNorm, PReLU or clip between them is a member. A
        suffix says what shapes can't: `"up[out=-2, in=-1]"` the kernel's axes (`transpose_kernel`),
        `"a[out=0+2]"` several (layers stacked by `nn.scan`), `"b[at=16]"` where the channels start
        in a concat.

        Args:
            pairs: `[("Conv_0", "Conv_1"), ("Conv_1", "BatchNorm_1", "Dense_0"), ...]`.
            params: the params pytree (only shapes and names are read).

        Returns:
            The spec. It is checked against the shapes, not against the function: use
            `check_spec` for that.

        Raises:
            PathError: a name matches nothing; the message lists the closest names.
            SpecError: shapes don't fit, a chain is empty, or two groups claim the same axis.

        Example:
            >>> params = {"a": {"kernel": np.ones((3, 4), "f"), "bias": np.ones(4, "f")},
            ...           "b": {"kernel": np.ones((4, 2), "f")}}
            >>> [s.path for s in Spec.from_pairs([("a", "b")], params).groups[0].sites]
            ['a/kernel', 'a/bias', 'b/kernel']
        """
        from flaxcle.spec.declare import groups_from_pairs  # noqa: PLC0415  (declare builds tables)

        return cls(groups_from_pairs(pairs, params))

    def to_json(self) -> str:
        """The spec as JSON text, to store beside a checkpoint and to diff.

        Example:
            >>> Spec.from_json(Spec().to_json()) == Spec()
            True
        """
        from flaxcle.spec.json import spec_to_json  # noqa: PLC0415  (json reads tables)

        return spec_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The spec that `to_json` wrote.

        Raises:
            SpecError: the text is not a spec of a version that this flaxcle reads.
        """
        from flaxcle.spec.json import spec_from_json  # noqa: PLC0415  (json builds tables)

        return spec_from_json(text)

    def explain(self, path: str) -> str:
        """Says for one leaf which scales move it, and why its other axes are blocked.

        Args:
            path: a leaf or module, with or without its collection: `'Conv_3/kernel'`.

        Raises:
            PathError: no row of the spec names it; the message lists the closest names.
        """
        from flaxcle.spec.text import explain_path  # noqa: PLC0415  (text renders tables)

        return explain_path(self, path)

    def __hash__(self) -> int:
        """The hash of a spec is asked for several times in each call, and takes a millisecond."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the hash, which differs between processes."""
        return Spec, (self.groups, self.blocked, self.unused)

    @cached_property
    def _hash(self) -> int:
        return hash((self.groups, self.blocked, self.unused))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The leaves that the groups scale, each once, in the order of the groups."""
        return tuple(dict.fromkeys(site.path for group in self.groups for site in group.sites))

    def select(self, *names: str) -> Spec:
        """The part of the spec that the names match; what is selected is no longer held.

        Args:
            names: group names, leaf or module paths, or shell patterns of either
                (`'*Conv_3*'`); none means all.

        Raises:
            SpecError: a name matches no group.

        Example:
            >>> spec = Spec((Group("a -> b", (2,), (Site("a/kernel", (1,)),), held=True),))
            >>> spec.select("a").groups[0].held
            False
        """
        chosen = {group.name for group in self.groups} if not names else set()
        for name in names:
            hits = {group.name for group in self.groups if _matches(group, name)}
            if not hits:
                near = closest(name, [group.name for group in self.groups])
                raise SpecError(f"no group matches {name!r}", then=f"the closest names are {near}")
            chosen |= hits
        kept = tuple(replace(g, held=False) for g in self.groups if g.name in chosen)
        return replace(self, groups=kept)


def _matches(group: Group, pattern: str) -> bool:
    names = {group.name}
    for site in group.sites:
        for path in (site.path, strip_collection(site.path)):
            while path:
                names.add(path)
                path = parent(path)
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def normal_axes(site: Site, rank: int) -> tuple[int, ...]:
    """The site's axes counted from 0."""
    return tuple(axis % rank for axis in site.axes) if rank else ()


def channels(site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """The channel of each position along the site's axes; identity when there is no index."""
    extent = tuple(shape[axis] for axis in site.axes)
    if site.index is None:
        return np.arange(math.prod(extent)).reshape(extent)
    return np.asarray(site.index)
