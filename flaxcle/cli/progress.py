"""A bar on stderr that moves from step to step, where stderr is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flaxcle.errors import ConfigError

Step = Callable[[str], None]


@contextmanager
def progress(steps: int) -> Iterator[Step]:
    """Gives `step(text)`, to be called as each of `steps` steps begins.

    Raises:
        ConfigError: rich is not installed.
    """
    try:
        from rich.console import Console  # noqa: PLC0415  (rich comes with an extra)
        from rich.progress import Progress  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the command line needs the package 'rich'", then="pip install 'flaxcle[cli]'"
        ) from error
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=steps, completed=-1)

        def step(text: str) -> None:
            bars.update(task, description=text, advance=1)

        yield step
