"""Dead channels: those that never fire, but whose weights set the step of a whole tensor.

With b a bound of what channel c can be in front of a weight W, it adds at most b[c] |W[c, o]| to
result o. Where that is nothing beside what other channels add, for every result, the channel goes
on all sides. Both factors move together under any rescaling, so a channel is judged by what it
does, not by how it is scaled at the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.clips import COLLECTION, expose_clips
from flaxcle.discover import find_spec
from flaxcle.jaxpr import Op, trace
from flaxcle.jaxpr.frames import frames
from flaxcle.paths import PyTree, is_float, named_leaves, replace_leaves
from flaxcle.prune.activity import Activity, measure
from flaxcle.prune.between import ends_in_consumers, find_shifts
from flaxcle.prune.readers import Reader, find_readers
from flaxcle.ranges import rest_of
from flaxcle.spec import Group, Site
from flaxcle.spec.table import channels, normal_axes

NEGLIGIBLE = 1e-9

Leaves = dict[str, np.ndarray]
Readers = Mapping[str, Sequence[Reader]]


def prune_dead_channels(fn: Callable[..., Any], variables: PyTree, *inputs: Any) -> PyTree:
    """Zeroes channels that contribute nothing, whose weights wreck a per-tensor range.

    Training with weight decay leaves channels with rows of 1e-20 and folded depthwise weights of
    90 where the others have 2: they never fire, no balance of ranges reaches them, and the step of
    the tensor is theirs. Channel c is zeroed, in producers and consumers, where for every result o
    of every consumer W

        b[c] |W[c, o]|  <=  1e-9 * max over c' of b[c'] |W[c', o]|,

    b being the channel's largest magnitude on random inputs. Where these do not move it, b is what
    it emits when all kernels are zero (behind a ReLU, max(bias, 0)) plus its gain times the largest
    b[i] |V[i, c]| in the producers V. A channel that emits a constant stays. Repeated until
    nothing changes: a zeroed depthwise filter lets its producer go as well. Only channels
    that go straight from one convolution or matrix product to others are judged, not the factors
    of a product. Fold BatchNorms first: only what is in the kernels counts.

    Args:
        fn: any function `fn(variables, *inputs)`, without `while` loops.
        variables: its params; their values are read, so this can't be jitted.
        inputs: example inputs or their ShapeDtypeStructs; their values are not used.

    Returns:
        Variables of the same structure and dtypes. The function changes by less than rounding.

    Raises:
        TraceError: no output depends on the variables.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> dead = {"a": jnp.array([[1.0, 1e-20]]), "b": jnp.array([[1.0], [9.0]])}
        >>> fc.prune_dead_channels(fn, dead, jnp.ones((1, 1)))["b"].ravel().tolist()
        [1.0, 0.0]

    References:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", arXiv:1906.04721, section 4, on the ranges that such channels spoil.
    """
    exposed, params = expose_clips(fn, variables, *inputs)
    program = trace(exposed, params, *inputs)
    readers, spec = find_readers(program), find_spec(exposed, params, *inputs)
    shifts = find_shifts(program)
    groups = [group for group in spec.groups if _is_plain(group, readers, shifts)]
    if not groups or any(op.primitive == "while" for f in frames(program) for op in f.graph.flat):
        return variables
    named = named_leaves(params).items()
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in named if is_float(leaf)}
    activity = measure(program, params, inputs, readers, shifts)
    pruner = _Pruner(leaves, readers, activity)
    pruner.bound(groups)
    masks = pruner.close(groups)
    old = named_leaves(variables)
    prefix = "" if set(old) <= set(leaves) else "params/"
    found = {path.removeprefix(prefix): mask for path, mask in masks.items()}
    return replace_leaves(
        variables, {path: jnp.where(mask, old[path], 0) for path, mask in found.items()}
    )


def _is_plain(group: Group, readers: Readers, shifts: set[str]) -> bool:
    """Whether a channel is made and read by kernels, and between them only added to."""
    kernels = _kernels(group, shifts)
    return (
        bool(kernels and group.consumers)
        and all(site.path in readers for site in (*kernels, *group.consumers))
        and {abs(site.power) for site in (*kernels, *group.consumers)} == {1}
        and ends_in_consumers(group, readers)
    )


def _kernels(group: Group, shifts: set[str]) -> list[Site]:
    """The producers that are neither biases nor bounds."""
    return [s for s in group.producers if s.path not in shifts and not _is_bound(s)]


def _is_bound(site: Site) -> bool:
    return site.path.startswith(f"{COLLECTION}/")


class _Pruner:
    """Magnitudes of weights and of the channels in front of them."""

    def __init__(self, leaves: Leaves, readers: Readers, activity: Mapping[Op, Activity]) -> None:
        self.leaves = {path: np.abs(leaf) for path, leaf in leaves.items() if path in readers}
        self.shapes = {path: leaf.shape for path, leaf in leaves.items()}
        self.readers, self.activity = readers, activity
        self.sizes = {op: one.noise.copy() for op, one in activity.items()}

    def bound(self, groups: Sequence[Group]) -> None:
        """Raises the sizes of channels that noise does not move, from the inputs on."""
        first = {
            group.name: min(r.order for s in group.consumers for r in self.readers[s.path])
            for group in groups
        }
        for group in sorted(groups, key=lambda group: first[group.name]):
            made = np.zeros(group.size)
            for site in group.producers:
                for reader in self.readers.get(site.path, ()):
                    largest = self._added(reader).max(axis=self._rest(site))
                    _maximum_at(made, _channels(site, self.shapes[site.path]), largest)
            for site in group.consumers:
                for reader in self.readers[site.path]:
                    self._raise(group, site, reader, made)

    def _raise(self, group: Group, site: Site, reader: Reader, made: np.ndarray) -> None:
        """A channel is at most its constant plus what its producers add."""
        sizes, found = self.sizes[reader.op], self.activity[reader.op]
        into, own = _meeting(site, reader, self.shapes[site.path])
        if np.unique(into).size < into.size or into.max(initial=0) >= sizes.size:
            sizes[:] = np.inf
        else:
            with np.errstate(invalid="ignore"):
                limit = found.constant[into] + found.gain[into] * made[own]
            limit = np.where(np.isnan(limit), np.inf, limit)
            sizes[into] = np.where(found.moves[into], sizes[into], limit)

    def close(self, groups: Sequence[Group]) -> Leaves:
        """Where leaves stay alive, for those that lose channels; repeated until nothing changes."""
        masks = Leaves()
        found = True
        while found:
            found = False
            for group in groups:
                dead = ~self._alive(group)
                for site in group.sites if dead.any() else ():
                    found |= not _is_bound(site) and self._cut(site, dead, masks)
        return masks

    def _cut(self, site: Site, dead: np.ndarray, masks: Leaves) -> bool:
        """Zeroes channels of a leaf; whether any of them was not zeroed before."""
        ids = _on_leaf(site, self.shapes[site.path])
        alive = np.where(ids < 0, True, ~dead[ids])
        old = masks.get(site.path, np.array(True))
        masks[site.path] = old & alive
        if site.path in self.leaves:
            self.leaves[site.path] = np.where(alive, self.leaves[site.path], 0.0)
        return bool((old & ~alive).any())

    def _alive(self, group: Group) -> np.ndarray:
        """The channels that count for some result."""
        alive = np.zeros(group.size)
        for site in group.consumers:
            for reader in self.readers[site.path]:
                added = self._added(reader)
                known = np.where(np.isfinite(added), added, 0.0)
                top = known.max(axis=reader.reduced(added.shape), keepdims=True, initial=0.0)
                counts = (added > NEGLIGIBLE * top).any(axis=self._rest(site))
                _maximum_at(alive, _channels(site, added.shape), counts)
        return alive > 0

    def _added(self, reader: Reader) -> np.ndarray:
        """What each weight adds to its result at most."""
        weight = self.leaves[reader.leaf]
        size = self.sizes[reader.op][reader.channels(weight.shape)]
        return np.where(weight > 0, weight * np.where(weight > 0, size, 0.0), 0.0)

    def _rest(self, site: Site) -> tuple[int, ...]:
        rank = len(self.shapes[site.path])
        return rest_of(rank, normal_axes(site, rank))


def _channels(site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """The channel of each position along the site's axes in the order in which they lie."""
    return channels(site, shape).transpose(np.argsort(normal_axes(site, len(shape))))


def _on_leaf(site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """The channel of each position of the leaf, as an array that broadcasts."""
    axes = normal_axes(site, len(shape))
    kept = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return _channels(site, shape).reshape(kept)


def _maximum_at(out: np.ndarray, ids: np.ndarray, values: np.ndarray) -> None:
    ids, values = ids.ravel(), values.ravel()
    np.maximum.at(out, ids[ids >= 0], values[ids >= 0])


def _meeting(site: Site, reader: Reader, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a reader's input channel and a group's channel that meet in the leaf."""
    inner, outer = np.broadcast_arrays(reader.channels(shape), _on_leaf(site, shape))
    inner, outer = inner.ravel(), outer.ravel()
    pairs = np.unique(np.stack([inner, outer])[:, outer >= 0], axis=1)
    return pairs[0], pairs[1]
