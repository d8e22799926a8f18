"""The fields of a train state: which are the params of a spec, which are copies of them.

A spec may start within `params` (`'Dense_0/kernel'`), or name the fields of the state themselves as
collections (`'params/Dense_0/kernel'`, `'batch_stats/BatchNorm_0/mean'`). The invariant: no field
that mirrors the params is passed over in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from flaxcle.errors import ConfigError
from flaxcle.paths import PyTree, named_leaves, shape_of
from flaxcle.spec import Spec

Fields = Mapping[str, Any]
Collections = tuple[str, ...]


def fields_of(state: Any) -> dict[str, Any]:
    """The fields of a dataclass; of anything else none."""
    if isinstance(state, type) or not dataclasses.is_dataclass(state):
        return {}
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def collections_of(fields: Fields, spec: Spec) -> Collections:
    """The fields that the spec's paths start with; none where they start within `params`."""
    paths = set(spec.paths)
    heads = {path.partition("/")[0] for path in paths} | {"params"}
    if paths <= set(named_leaves(fields["params"])) or not heads <= set(fields):
        return ()
    return tuple(sorted(heads))


def joined(fields: Fields, collections: Collections) -> PyTree:
    """The tree that the spec's paths lead into."""
    return {name: fields[name] for name in collections} if collections else fields["params"]


def split(tree: PyTree, collections: Collections) -> dict[str, Any]:
    """The fields of such a tree."""
    return dict(tree) if collections else {"params": tree}


def copies_of_params(fields: Fields) -> list[str]:
    """The names of further fields that have the tree of the params, such as `ema_params`.

    Raises:
        ConfigError: such a field has no name that tells what it is.
    """
    tree = _shapes(fields["params"])
    others = [name for name in fields if name not in ("params", "opt_state")]
    mirrors = [name for name in others if _shapes(fields[name]) == tree]
    for name in mirrors:
        if "params" not in name:
            raise ConfigError(
                f"can't tell whether the field {name!r} of the train state holds params",
                where="it has the same tree",
                then="call it '..._params' if it does, else take the steps one by one: solve, "
                "apply_scales (for gradients with slot='first_moment'), rescale_opt_state",
            )
    return mirrors


def _shapes(tree: PyTree) -> Any:
    return jax.tree.structure(tree), [shape_of(leaf) for leaf in jax.tree.leaves(tree)]
