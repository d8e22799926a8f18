"""One leaf of an optimizer state: the param that it mirrors, and to what power it moves.

    leaf *= s ** exponent

`s` is the factor of the param. The invariant: an exponent of `None` says 'unknown', and is never
taken for zero, which says 'right as it is'.
"""

from __future__ import annotations

from typing import NamedTuple

from flaxcle.apply import SLOTS, Mean

_SLOT_OF = {exponent: slot for slot, exponent in SLOTS.items()} | {0: "untouched"}


class StateLeaf(NamedTuple):
    """What is known of one leaf of a state.

    Attributes:
        path: in the state.
        param: the param that it mirrors.
        exponent: the leaf is multiplied by the param's factor to this power; `None`: unknown.
        why: the reason, where the exponent is zero or unknown.
        mean: over which axis of the param it is a mean, for a factored moment.
    """

    path: str
    param: str | None
    exponent: int | None
    why: str = ""
    mean: Mean | None = None

    @property
    def slot(self) -> str:
        """The slot of `apply_scales`, `"untouched"` when right as it is, else `"unmapped"`."""
        return "unmapped" if self.exponent is None else _SLOT_OF[self.exponent]
