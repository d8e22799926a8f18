"""How scales pass through each primitive of JAX, one family a file; primitives by name.

A rule gets the scales of an operation's operands, may state equations through the `Context`, and
returns the scales of the results. A primitive without a rule blocks what it reads.
"""

from __future__ import annotations

from flaxcle.rules import (
    arithmetic,
    contraction,
    control,
    convolution,
    elementwise,
    indexing,
    layout,
    lookup,
    reduction,
    shards,
    window,
)
from flaxcle.rules.context import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **arithmetic.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **layout.RULES,
    **reduction.RULES,
    **window.RULES,
    **indexing.RULES,
    **lookup.RULES,
    **control.RULES,
    **shards.RULES,
}
