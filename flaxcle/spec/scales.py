"""The values that belong to a spec: one float32 log2 array per group, plus solver diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from flaxcle.spec.table import Spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales:
    """The scale of every group, as base-2 logarithms.

    Attributes:
        log2: group name -> float32 array of the group's shape.
        kept: group name -> bool array: channels that a guard kept at scale 1 (range zero,
            numerically zero or not finite on one side).
        residual: largest |change| of a log2 scale in the last sweep.
        sweeps: number of sweeps done.

    Example:
        >>> from flaxcle import Group, Site
        >>> spec = Spec((Group("a -> b", (2,), (Site("a/kernel", (1,)),)),))
        >>> Scales.zeros(spec)["a -> b"].tolist()
        [1.0, 1.0]
    """

    log2: dict[str, jax.Array]
    kept: dict[str, jax.Array] = field(default_factory=dict)
    residual: jax.Array | float = 0.0
    sweeps: jax.Array | int = 0

    @classmethod
    def zeros(cls, spec: Spec) -> Scales:
        """Scale 1 everywhere: the identity."""
        return cls({group.name: jnp.zeros(group.shape, jnp.float32) for group in spec.groups})

    def __getitem__(self, name: str) -> jax.Array:
        """The linear scales of a group."""
        return jnp.exp2(self.log2[name])

    def to_json(self) -> str:
        """The scales as JSON text, to store beside a checkpoint, exact to the bit.

        Example:
            >>> print(Scales({"a -> b": jnp.array([1.0, -0.5])}).to_json())
            {
              "flaxcle_scales": 1,
              "residual": 0.0,
              "sweeps": 0,
              "groups": [
                {"name": "a -> b", "shape": [2], "log2": [1.0, -0.5]}
              ]
            }
        """
        from flaxcle.spec.json import scales_to_json  # noqa: PLC0415  (json reads scales)

        return scales_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Scales:
        """The scales that `to_json` wrote.

        Raises:
            SpecError: the text is not that of scales of a version that this flaxcle reads.

        Example:
            >>> Scales.from_json(Scales({"a": jnp.array([3.0])}).to_json())["a"].tolist()
            [8.0]
        """
        from flaxcle.spec.json import scales_from_json  # noqa: PLC0415  (json builds scales)

        return scales_from_json(text)
