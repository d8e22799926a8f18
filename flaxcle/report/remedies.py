"""What to do about a blocked axis, by the reason that `find_spec` gives.

The invariant: every reason has a remedy, if only to leave it be.
"""

from __future__ import annotations

PER_CHANNEL = "give its weights a scale for each channel: weight_granularity='per_channel'"
# The first entry whose words all stand in the reason counts.
REMEDIES = (
    (("output of the function",), "nothing: outputs keep their scale"),
    (("undone by another factor",), "nothing: the scale would change nothing"),
    (("relu6",), "fc.expose_clips gives each channel a bound"),
    (("hard_tanh",), "fc.expose_clips gives each channel a bound"),
    (("'min' combines", "constant"), "fc.expose_clips gives each channel a bound"),
    (("'max' combines", "constant"), "fc.expose_clips gives each channel a bound"),
    (("'clamp' combines", "constant"), "fc.expose_clips gives each channel a bound"),
    (("'add' combines", "constant"), "nothing, where it is the epsilon of a norm"),
    (("sums its products",), "nothing: what it reads is pinned further up, or an input"),
    (("positions that depend on data",), "nothing: tables that are looked up stay"),
    (("no rule says",), "declare the pair with fc.Spec.from_pairs, if you know it is legal"),
)


def remedy(reason: str) -> str:
    """What to do, in words.

    >>> remedy("relu6 is not positively homogeneous")
    'fc.expose_clips gives each channel a bound'
    """
    fitting = (what for words, what in REMEDIES if all(word in reason for word in words))
    return next(fitting, PER_CHANNEL)
