"""The networks and data on which `benchmarks/accuracy.py` measures what int8 costs.

Each name is a module here whose `load()` builds the subject; the same name always gives the same
numbers. A module is imported when it is asked for, as not all need the same packages.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "fashion_mnist"))

from .subject import Subject as Subject

NAMES = ("lite0_head", "lite0_photos", "mobilenet_v2", "resnet18", "gpt")


def load(name: str) -> Subject:
    """The subject of that name, which is one of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(NAMES)}")
    return import_module(f".{name}", __name__).load()
