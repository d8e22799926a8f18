"""`module:function` on the command line -> the network and its inputs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from flaxcle.errors import ConfigError

_RETURNS = "return (fn, inputs), with fn(params, *inputs) and a tuple of arrays, or fn alone"


class Model(NamedTuple):
    """A network `fn(params, *inputs)` and inputs for it."""

    fn: Callable[..., Any]
    inputs: tuple[Any, ...]


def load_model(reference: str) -> Model:
    """What `reference`, a `module:function`, returns when it is called.

    Raises:
        ConfigError: there is no such module or function, or it returns something else.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ConfigError(f"can't read {reference!r}", then="write it as module:function")
    function = getattr(_module(module_name), name, None)
    if not callable(function):
        raise ConfigError(
            f"no function is called {name!r}",
            where=f"module {module_name!r}",
            then=f"define {name}(), which has to {_RETURNS}",
        )
    return _checked(function(), reference)


def _module(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but not what it imports
        raise ConfigError(
            f"no module is called {name!r}",
            where=f"in {here} and in the installed packages",
            then="run flaxcle where the module lies; write packages with dots",
        ) from error


def _checked(returned: Any, reference: str) -> Model:
    pair = (returned, ()) if callable(returned) else returned
    if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[0]):
        raise ConfigError(
            f"{reference!r} returns {type(returned).__name__}", then=f"let it {_RETURNS}"
        )
    fn, inputs = pair
    return Model(fn, tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,))
