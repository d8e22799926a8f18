"""Shows the `>>>` examples of the docstrings as code on the site, wherever they stand."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.M)


class DoctestFences(griffe.Extension):
    """Puts a fence around each example, which ends at the first empty line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring:
            text = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            # griffe finds examples by itself under `Examples:`, but not under `Example:`.
            obj.docstring.value = re.sub(r"^( *)Examples:$", r"\1Example:", text, flags=re.M)
