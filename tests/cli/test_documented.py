"""The page about the command line shows what happens: its commands are typed, outputs compared."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from flaxcle.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "command-line.md"
FENCE = re.compile(
    r"^```(?P<kind>python|console)(?: title=\"(?P<title>.*)\")?\n(?P<body>.*?)^```$", re.M | re.S
)


def shown(capsys, command):
    """What a terminal shows."""
    main(shlex.split(command)[1:])
    out, err = capsys.readouterr()
    return out + err


def test_the_page_shows_what_the_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    commands, namespace = 0, {"__name__": "page"}
    for fence in FENCE.finditer(PAGE.read_text("utf-8")):
        if fence["title"]:
            Path(fence["title"]).write_text(fence["body"], encoding="utf-8")
        elif fence["kind"] == "python":
            exec(fence["body"], namespace)
        else:
            prompt, _, output = fence["body"].partition("\n")
            assert shown(capsys, prompt.removeprefix("$ ")) == output
            commands += 1
    assert commands == 8
