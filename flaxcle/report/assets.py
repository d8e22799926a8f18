"""The libraries that a page carries: Vega for charts, DataTables for tables, out of two packages.

The invariant: a page asks no server for anything.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from flaxcle.errors import FlaxcleError


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as one script that defines `vegaEmbed`."""
    return _package("vl_convert").javascript_bundle()


@cache
def tables_module() -> str:
    """DataTables as the URL of a module that holds its code."""
    bundle = Path(_package("itables.options").dt_bundle).read_bytes()
    return f"data:text/javascript;base64,{base64.b64encode(bundle).decode()}"


def own(name: str) -> str:
    """A file that lies beside this one."""
    return resources.files("flaxcle.report").joinpath(name).read_text(encoding="utf-8")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise FlaxcleError(
            "a report needs the packages that draw its charts and tables",
            where=f"{name.partition('.')[0]!r} is not installed",
            then="pip install 'flaxcle[report]'",
        ) from error
