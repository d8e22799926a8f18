"""Replacing a file or directory: whole or not at all, whenever the process dies."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaxcle.checkpoint import replace
from flaxcle.checkpoint.replace import recover, replacing
from flaxcle.errors import CheckpointError

KILL_POINTS = Path(__file__).with_name("kill_points.py")


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """A row for each call before which a process was killed."""
    folder = tmp_path_factory.mktemp("kills")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, KILL_POINTS, folder],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def rows(kills, **wanted):
    return [row for row in kills if all(row[key] == value for key, value in wanted.items())]


WAYS = [(False, True), (True, True), (True, False)]
WAY_IDS = ["file", "exchanged directories", "directories without exchange"]


@pytest.mark.parametrize(("folder", "exchanged"), WAYS, ids=WAY_IDS)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_one_whole(kills, folder, exchanged):
    found = rows(kills, folder=folder, exchanged=exchanged)
    assert sum(row["killed"] for row in found) >= 10
    assert {row["recovered"] for row in found} == {"old", "new"}
    assert found[0]["found"] == "old"
    assert found[-1]["found"] == "new"


@pytest.mark.parametrize(("folder", "exchanged"), WAYS[:2], ids=WAY_IDS[:2])
def test_the_target_is_never_missing(kills, folder, exchanged):
    assert {row["found"] for row in rows(kills, folder=folder, exchanged=exchanged)} == {
        "old",
        "new",
    }


def test_without_exchange_it_is_missing_at_one_moment_and_comes_back(kills):
    missing = rows(kills, folder=True, exchanged=False, found="missing")
    assert len(missing) == 1
    assert missing[0]["recovered"] == "old"


def test_old_stays_until_new_takes_its_place(kills):
    for folder, exchanged in WAYS:
        order = [row["recovered"] for row in rows(kills, folder=folder, exchanged=exchanged)]
        assert order == sorted(order, reverse=True)


def test_the_next_run_replaces_and_clears_what_is_left(kills):
    assert {row["finally"] for row in kills} == {"newest"}
    assert {tuple(row["left"]) for row in kills} == {()}


def test_names_appear_after_their_data_are_on_the_disk(tmp_path, monkeypatch):
    log = []

    def note(descriptor):
        log.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    rename = os.replace
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda *names: (log.append("rename"), rename(*names)))
    with replacing(tmp_path / "target", overwrite=False) as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "data").write_text("x", encoding="utf-8")
    before, after = log[: log.index("rename")], log[log.index("rename") + 1 :]
    assert sorted(before) == [".target.flaxcle", "data", "inner", "new"]
    assert after == [tmp_path.name]


def test_an_error_leaves_everything_as_it_was(tmp_path):
    target = tmp_path / "target"
    target.write_text("old", encoding="utf-8")

    def fail():
        with replacing(target, overwrite=True) as new:
            new.write_text("half", encoding="utf-8")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert target.read_text("utf-8") == "old"
    assert os.listdir(tmp_path) == ["target"]


def test_an_error_between_the_renames_puts_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    rename = os.rename

    def second_fails(one, two):
        if Path(two) == target and Path(one).name == "new":
            raise OSError("no space")
        rename(one, two)

    monkeypatch.setattr(replace, "_exchange", lambda one, two: False)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="no space"), replacing(target, overwrite=True) as new:
        new.mkdir()
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["target"]


def test_nothing_is_overwritten_unasked(tmp_path):
    target = tmp_path / "target"
    target.touch()
    message = f"won't overwrite what is there: {target}. What to do: choose another name, or pass"
    with pytest.raises(CheckpointError, match=message), replacing(target, overwrite=False):
        pytest.fail("the body must not run")


def test_what_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "target"
    with (  # noqa: PT012  (the error comes at the end of the block)
        pytest.raises(CheckpointError, match="won't overwrite"),
        replacing(target, overwrite=False) as new,
    ):
        new.write_text("mine", encoding="utf-8")
        target.write_text("another's", encoding="utf-8")
    assert target.read_text("utf-8") == "another's"


@pytest.mark.parametrize("act", [recover, lambda path: replacing(path, overwrite=True).__enter__()])
def test_two_processes_are_kept_apart(tmp_path, act):
    staging = tmp_path / ".target.flaxcle"
    (staging / "old").mkdir(parents=True)
    other = os.open(staging, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(CheckpointError, match="another process is writing this checkpoint"):
            act(tmp_path / "target")
    finally:
        os.close(other)
    assert (staging / "old").exists()


def test_a_link_stays_and_its_destination_is_replaced(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old", encoding="utf-8")
    link.symlink_to(real)
    with replacing(link, overwrite=True) as new:
        new.write_text("new", encoding="utf-8")
    assert link.is_symlink()
    assert real.read_text("utf-8") == "new"


def test_permissions_stay(tmp_path):
    target = tmp_path / "target"
    target.touch()
    target.chmod(0o640)
    with replacing(target, overwrite=True) as new:
        new.touch(0o600)
    assert target.stat().st_mode & 0o777 == 0o640
