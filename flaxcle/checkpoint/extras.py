"""The packages of the extra `checkpoint`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from flaxcle.errors import CheckpointError


def package(name: str) -> Any:
    """The module of this name.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"this kind of checkpoint needs the package {name.partition('.')[0]!r}",
            where=f"{error}",
            then="pip install 'flaxcle[checkpoint]'",
        ) from error
