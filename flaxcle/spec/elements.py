"""One name of a declared chain -> the leaves of that layer by role.

`"up_0[out=-2, in=-1]"` is a module or leaf path with an optional suffix for what shapes can't tell.
A role comes from the leaf's name (`kernel`, `bias`, `mean`, ...) or, in a module that uses none of
these names, from its rank. The invariant: no floating leaf of a named module is passed over in
silence, because a leaf that stays behind changes the function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flaxcle.errors import SpecError
from flaxcle.paths import is_float, leaf_name, parent, resolve, shape_of, strip_collection

_EMBEDDINGS = ("embedding", "embeddings")
_ROLES = {
    **dict.fromkeys(("kernel", "w", "weight", *_EMBEDDINGS), "kernel"),
    **dict.fromkeys(("bias", "b", "offset"), "shift"),
    "scale": "gain",
    **dict.fromkeys(("mean", "running_mean"), "mean"),
    **dict.fromkeys(("var", "running_var", "negative_slope"), "none"),
}
# Haiku keeps running averages in modules of their own; inference reads `average` alone.
_AVERAGES = {
    "mean_ema/average": "mean",
    **dict.fromkeys(("mean_ema/hidden", "var_ema/average", "var_ema/hidden"), "none"),
}
_SYNTAX = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<options>[^\[\]]*)\])?")
_OPTION = re.compile(r"\s*(?P<key>in|out|at)\s*=\s*(?P<numbers>-?\d+(\s*\+\s*-?\d+)*)\s*")
_ATTENTION = (("query", "key", "value", "out"), ("q", "k", "v", "o"))
_CLIPS = "clips"


class Leaf(NamedTuple):
    """A leaf's path and shape: all that a spec reads of it."""

    path: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """As messages show it."""
        return f"{self.path!r} of shape {self.shape}"


@dataclass(frozen=True)
class Layer:
    """The leaves of one named layer by role, and what its suffix says.

    Attributes:
        name: the module's path without collection.
        kernel: what makes and reads channels; `None` for a norm or an activation.
        gain: the scale of a norm.
        mean: the running mean of a BatchNorm.
        shifts: biases, added to each channel.
        bounds: clip bounds of the layer's output.
        options: the suffix: `"out"` and `"in"` axes, `"at"` positions.
        trailing: how many trailing axes of the kernel are its features; 0 where that is open.
    """

    name: str
    kernel: Leaf | None = None
    gain: Leaf | None = None
    mean: Leaf | None = None
    shifts: tuple[Leaf, ...] = ()
    bounds: tuple[Leaf, ...] = ()
    options: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trailing: int = 0

    @property
    def is_vector(self) -> bool:
        """Whether the name is that of a single bias or scale leaf."""
        vectors = [leaf.path for leaf in (self.gain, *self.shifts) if leaf]
        return not self.kernel and [strip_collection(path) for path in vectors] == [self.name]

    @property
    def source(self) -> Leaf | None:
        """The leaf that makes the channels: the kernel, or the scale of a norm."""
        return self.kernel or self.gain

    @property
    def weights(self) -> Leaf:
        """The kernel of a layer that is known to have one."""
        assert self.kernel is not None
        return self.kernel

    @property
    def outer_first(self) -> bool:
        """Whether the leaves follow the (out, in, ...) convention of PyTorch and Equinox."""
        return self.source is not None and leaf_name(self.source.path) == "weight"

    @property
    def embeds(self) -> bool:
        """Whether the kernel is a lookup table (vocabulary, features)."""
        return self.kernel is not None and leaf_name(self.kernel.path) in _EMBEDDINGS


def read_layer(text: str, leaves: Mapping[str, Any]) -> Layer:
    """The layer that one element of a chain names.

    Raises:
        PathError: nothing has this name.
        SpecError: bad suffix, sub-modules with kernels, leaves of unknown role, a zero-size axis.
    """
    name, options = _parse(text)
    found = [Leaf(path, shape_of(leaves[path])) for path in _leaves_of(name, leaves)]
    for leaf in found:
        if 0 in leaf.shape:
            axis = leaf.shape.index(0)
            raise SpecError(f"axis {axis} has size zero", where=str(leaf), then="drop this layer")
    roles = _roles(name, found, leaves)
    kernel = _single(name, roles["kernel"])
    return Layer(
        name=_module_name(name),
        kernel=kernel,
        gain=_single(name, roles["gain"]),
        mean=_single(name, roles["mean"]),
        shifts=tuple(roles["shift"]),
        bounds=tuple(roles["bound"]),
        options=options,
        trailing=_trailing(kernel, roles["shift"], leaves) if kernel else 0,
    )


def _parse(text: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    """`"a/b[in=0+1, at=16]"` -> name and options."""
    match = _SYNTAX.fullmatch(text)
    parts = (match["options"] or "").split(",") if match else []
    found = [_OPTION.fullmatch(part) for part in parts if match and match["options"] is not None]
    keys = [option["key"] for option in found if option]
    if match is None or None in found or len(set(keys)) != len(found):
        raise SpecError(
            f"can't read the name {text!r}",
            then="write 'path', 'path[out=-2, in=-1]' (axes of the kernel, 'in=0+1' for several) "
            "or 'path[at=16]' (where the channels start in a concat)",
        )
    numbers = [[int(n) for n in option["numbers"].split("+")] for option in found if option]
    return match["name"].strip().strip("/"), dict(zip(keys, map(tuple, numbers), strict=True))


def _leaves_of(name: str, leaves: Mapping[str, Any]) -> list[str]:
    """The leaf, or the module's leaves in every collection; a kernel stands for its layer."""
    found = resolve(name, leaves)
    bare, module = strip_collection(name), _module_name(name)
    exact = [path for path in found if strip_collection(path) == bare]
    if not exact:
        explicit = name.startswith(_CLIPS + "/")
        return found if explicit else [*found, *_elsewhere(bare, found, leaves)]
    shifts = [p for p in leaves if parent(p) == parent(exact[0]) and _named(p) == "shift"]
    shifts = shifts if _named(bare) == "kernel" else []
    return [exact[0], *shifts, *(p for p in leaves if p.startswith(f"{_CLIPS}/{module}/"))]


def _elsewhere(bare: str, found: Sequence[str], leaves: Mapping[str, Any]) -> list[str]:
    """The module's leaves in the other collections."""
    prefix = bare + "/"
    return [p for p in leaves if p not in found and strip_collection(p).startswith(prefix)]


def _named(path: str) -> str | None:
    average = f"{leaf_name(parent(path))}/{leaf_name(path)}"
    return _AVERAGES.get(average, _ROLES.get(leaf_name(path)))


def _module_name(name: str) -> str:
    """`'params/Conv_0/kernel'` -> `'Conv_0'`; a leaf that is no known kernel keeps its name."""
    bare = strip_collection(name)
    return parent(bare) or bare if _named(bare) == "kernel" else bare


def _roles(name: str, found: Sequence[Leaf], leaves: Mapping[str, Any]) -> dict[str, list[Leaf]]:
    """The leaves by role; names decide, ranks where no name is known."""
    kinds = ("kernel", "shift", "gain", "mean", "none", "bound", "unknown")
    roles: dict[str, list[Leaf]] = {role: [] for role in kinds}
    for leaf in found:
        roles[_role(leaf, leaves[leaf.path])].append(leaf)
    bare = strip_collection(name)
    kernels = [strip_collection(leaf.path) for leaf in roles["kernel"]]
    inner = {parent(path) for path in kernels if path.startswith(bare + "/")} - {bare}
    if inner:
        raise SpecError(
            f"{name!r} is not one layer: its sub-modules have kernels",
            where=", ".join(repr(module) for module in sorted(inner)[:6]),
            then="name the sub-modules, in the order of the data flow",
        )
    if roles["unknown"] and not roles["kernel"]:
        _by_rank(roles)
    if roles["unknown"]:
        raise SpecError(
            f"can't tell what these leaves of {name!r} do to the channels",
            where=", ".join(map(str, roles["unknown"])),
            then="name the leaves that carry channels one by one, kernels and biases in one tuple",
        )
    return roles


def _role(leaf: Leaf, value: Any) -> str:
    if leaf.path.startswith(_CLIPS + "/"):
        return "bound"
    role = _named(leaf.path)
    if role == "kernel" and leaf_name(leaf.path) == "weight" and len(leaf.shape) == 1:
        return "gain"
    if role is None:
        return "unknown" if leaf.shape and is_float(value) else "none"
    return role


def _by_rank(roles: dict[str, list[Leaf]]) -> None:
    """One unknown matrix is the kernel, one unknown vector its bias; a lone vector is a gain."""
    wide = [leaf for leaf in roles["unknown"] if len(leaf.shape) > 1]
    flat = [leaf for leaf in roles["unknown"] if len(leaf.shape) == 1]
    if len(wide) == 1 and (not flat or [leaf.shape for leaf in flat] == [wide[0].shape[-1:]]):
        roles["kernel"], roles["shift"] = wide, roles["shift"] + flat
    elif not wide and len(flat) == 1 and not roles["gain"]:
        roles["gain"] = flat
    else:
        return
    roles["unknown"] = []


def _single(name: str, found: Sequence[Leaf]) -> Leaf | None:
    if len(found) > 1:
        raise SpecError(
            f"{name!r} has several leaves of the same role",
            where=", ".join(map(str, found)),
            then="name one of them by its own path",
        )
    return found[0] if found else None


def _trailing(kernel: Leaf, shifts: Sequence[Leaf], leaves: Mapping[str, Any]) -> int:
    """Feature axes that the bias shape proves, or the names in an attention module."""
    if leaf_name(kernel.path) == "weight":
        return 0
    for shift in shifts:
        rank = len(shift.shape)
        if 1 < rank < len(kernel.shape) and kernel.shape[-rank:] == shift.shape:
            return rank
    module, own = parent(kernel.path), leaf_name(kernel.path)
    for parts in _ATTENTION:
        block = [f"{parent(module)}/{part}/{own}".strip("/") for part in parts]
        ranks = {len(shape_of(leaves[path])) for path in block if path in leaves}
        if kernel.path in block and all(path in leaves for path in block) and ranks == {3}:
            return 1 if kernel.path == block[-1] else 2
    return 0
