"""`flaxcle`: runs a subcommand and turns what happened into an exit code.

Results go to stdout; progress, notes and errors to stderr. The invariant: an error that a user can
mend is one line without a traceback, everything else shows where it comes from.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from flaxcle.cli.arguments import parser
from flaxcle.errors import FlaxcleError

OK, NOT_EQUIVALENT, BAD_INPUT, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `flaxcle *argv`.

    Returns:
        The exit code: 0 done, 1 `verify` found a difference, 2 bad usage or input, 3 something
        unexpected (in the model's code, or a bug), 130 interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        done = arguments.run(arguments)
    except (FlaxcleError, OSError) as error:
        sys.stderr.write(f"flaxcle {arguments.command}: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"flaxcle {arguments.command}: interrupted\n")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return UNEXPECTED
    return OK if done else NOT_EQUIVALENT
