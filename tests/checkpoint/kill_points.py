"""Kills the replacement of a file or directory before each of its file-system calls.

Run as a script, on its own: it forks, which a process with JAX at work must not. Prints a line of
JSON for each kill: what was replaced, before which call, and what was found afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from flaxcle.checkpoint import replace

CALLS = ("open", "os.", "shutil.rmtree", "pathlib.", "ctypes.dlsym")
PARTS = ("a", "folder/b", "folder/c")


def write(path: Path, text: str, is_folder: bool) -> None:
    """Several files of the same text, or one."""
    if not is_folder:
        path.write_text(text, encoding="utf-8")
        return
    for part in PARTS:
        (path / part).parent.mkdir(parents=True, exist_ok=True)
        (path / part).write_text(text, encoding="utf-8")


def read(path: Path) -> str:
    """The text, when all files are there and have the same; else what is wrong."""
    if not path.exists():
        return "missing"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    texts = {(path / part).read_text(encoding="utf-8") for part in PARTS if (path / part).exists()}
    files = [file for file in path.rglob("*") if file.is_file()]
    return texts.pop() if len(texts) == 1 and len(files) == len(PARTS) else "broken"


def die_before(call: int) -> None:
    """From now on this process dies before its file-system call of this number."""
    calls = iter(range(call))

    def hook(event: str, _: object) -> None:
        if event.startswith(CALLS) and next(calls, None) is None:
            signal.raise_signal(signal.SIGKILL)  # os.kill would be such a call itself

    sys.addaudithook(hook)


def replaced_in_child(target: Path, text: str, is_folder: bool, call: int | None) -> int:
    """Replaces the target in another process; returns the signal that killed it."""
    child = os.fork()
    if not child:
        try:
            if call is not None:
                die_before(call)
            with replace.replacing(target, overwrite=True) as new:
                write(new, text, is_folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status)


def trials(folder: Path, is_folder: bool, exchanged: bool) -> None:
    """Kills at every call in turn, until the replacement runs to its end."""
    folder.mkdir()
    target, call, killed = folder / "target", 0, signal.SIGKILL
    while killed:
        write(target, "old", is_folder)
        killed = replaced_in_child(target, "new", is_folder, call)
        found = read(target)
        replace.recover(target)
        recovered = read(target)
        replaced_in_child(target, "newest", is_folder, None)
        row = {
            "folder": is_folder,
            "exchanged": exchanged,
            "call": call,
            "killed": bool(killed),
            "found": found,
            "recovered": recovered,
            "finally": read(target),
            "left": sorted(set(os.listdir(folder)) - {"target"}),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        call += 1


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # it matters when the power fails, not the process
    here = Path(sys.argv[1])
    trials(here / "file", False, True)
    trials(here / "exchanged", True, True)
    replace._exchange = lambda one, two: False
    trials(here / "renamed", True, False)
