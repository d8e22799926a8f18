"""The errors of flaxcle.

Each message has up to three parts: what was asked, where it failed (path, axis, shape), and what
to do next. The invariant: an error is raised before anything is computed or changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlaxcleError(ValueError):
    """Base of every error that flaxcle raises on purpose.

    >>> raise FlaxcleError("cannot equalize", where="'Dense_0/kernel'", then="pass float weights")
    Traceback (most recent call last):
    ...
    flaxcle.errors.FlaxcleError: cannot equalize: 'Dense_0/kernel'. What to do: pass float weights.
    """

    def __init__(self, what: str, *, where: str = "", then: str = "") -> None:
        """Joins the three parts of the message.

        Args:
            what: what was asked and why it can't be done.
            where: path, axis and shape.
            then: what the user should do next.
        """
        message = f"{what}: {where}" if where else what
        super().__init__(f"{message}. What to do: {then}." if then else message)


class PathError(FlaxcleError):
    """A name matches no leaf or module of the params tree."""


class SpecError(FlaxcleError):
    """A spec is malformed, does not fit the params, or would change the function."""


class WeightError(FlaxcleError):
    """A leaf holds values that can't be scaled: integers, complex numbers, NaN or infinity."""


class ConfigError(FlaxcleError):
    """An option or a QuantConfig field is out of its range."""


class TraceError(FlaxcleError):
    """A function can't be analysed: nothing depends on the params, or an operation is opaque."""


class FoldError(FlaxcleError):
    """A normalization can't be folded."""


class CalibrationError(FlaxcleError):
    """Calibration data are missing, or don't belong to this function."""


class CheckpointError(FlaxcleError):
    """A checkpoint is missing, unreadable, of another network, or in the way of a new one."""


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names most like `name`, quoted, for the 'what to do' part of a message.

    >>> closest("Conv_0/kernal", ["Conv_0/kernel", "Conv_0/bias", "Dense_0/kernel"], count=1)
    "'Conv_0/kernel'"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.4) or known[:count]
    return ", ".join(repr(candidate) for candidate in near)
