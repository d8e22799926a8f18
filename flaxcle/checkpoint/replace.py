"""One file or directory takes the place of another, whole or not at all.

The new one is written to `.NAME.flaxcle/new` beside the target, flushed to the disk, and renamed.
A file replaces a file in one step. So does a directory where the kernel can exchange two names
(Linux); elsewhere the old one steps aside to `.NAME.flaxcle/old` first, and whoever reads or
writes the target next puts it back if the process died in between.

The invariant: at every moment the target is the whole old one or the whole new one, or
(between those two renames alone) `old` is the whole old one. What a killed process leaves in
`.NAME.flaxcle` is removed by the next one that writes the target; a lock keeps two of them apart.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flaxcle.errors import CheckpointError

_HERE = -100  # AT_FDCWD: relative paths start at the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE


@contextmanager
def replacing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives the path to write to; without an error it then takes the place of the target.

    Args:
        target: where the file or directory belongs; behind a symbolic link, its destination.
        overwrite: whether an old one may be replaced.

    Raises:
        CheckpointError: there is an old one, or another process is writing to the target.
        OSError: the file system refuses; the target is as it was.
    """
    target = target.resolve()
    with _staging(target) as staging:
        check_free(target, overwrite)
        new = staging / "new"
        yield new
        _open_up(new, target)
        _flush(new)
        check_free(target, overwrite)
        _swap(new, target, staging)
        _flush_entry(target.parent)


def check_free(target: Path, overwrite: bool) -> None:
    """Raises CheckpointError when there is something that may not be replaced."""
    if target.exists() and not overwrite:
        raise CheckpointError(
            "won't overwrite what is there",
            where=str(target),
            then="choose another name, or pass overwrite=True (--force on the command line)",
        )


def recover(target: Path) -> None:
    """Puts an old directory back that a killed process left aside.

    Raises:
        CheckpointError: another process is writing to the target.
    """
    target = target.resolve()
    if not target.exists() and (_staging_of(target) / "old").exists():
        with _staging(target):
            pass


def _staging_of(target: Path) -> Path:
    return target.parent / f".{target.name}.flaxcle"


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """An empty directory beside the target, for this process alone; removed at the end."""
    staging = _staging_of(target)
    lock = _locked(staging, target)
    try:
        _put_back(target, staging)
        for leftover in staging.iterdir():
            _remove(leftover)
        yield staging
    finally:
        try:
            _put_back(target, staging)
            shutil.rmtree(staging, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(staging: Path, target: Path) -> int:
    """Makes the directory and locks it: a descriptor that keeps it locked until it is closed."""
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        try:
            lock = _lock(staging)
        except FileNotFoundError:
            continue  # its last owner removed it meanwhile
        except BlockingIOError as error:
            raise CheckpointError(
                "another process is writing this checkpoint", where=str(target), then="wait for it"
            ) from error
        return lock


def _lock(folder: Path) -> int:
    """Locks a directory that is still there when it is locked."""
    import fcntl  # noqa: PLC0415  (POSIX only, and flaxcle can be imported elsewhere)

    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), folder.stat()):
            raise FileNotFoundError(folder)
    except OSError:
        os.close(lock)
        raise
    return lock


def _open_up(new: Path, target: Path) -> None:
    """The permissions of the old file, or those of any new one: some writers keep theirs closed."""
    if new.is_file():
        model = target if target.is_file() else new.parent
        new.chmod(model.stat().st_mode & 0o666)


def _put_back(target: Path, staging: Path) -> None:
    old = staging / "old"
    if not target.exists() and old.exists():
        os.rename(old, target)


def _swap(new: Path, target: Path, staging: Path) -> None:
    if not target.exists() or not (new.is_dir() or target.is_dir()):
        os.replace(new, target)
    elif not _exchange(new, target):
        os.rename(target, staging / "old")
        os.rename(new, target)
        # A name that nobody puts back, before it is removed file by file.
        os.rename(staging / "old", staging / "done")


def _exchange(one: Path, two: Path) -> bool:
    """Exchanges two names in one step; `False` where system or file system can't."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_HERE, os.fsencode(one), _HERE, os.fsencode(two))
    return rename is not None and rename(*names, _EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Everything in a file or directory to the disk, so that no name is there before its data."""
    for folder, _, names in os.walk(path):
        for name in names:
            _flush_entry(Path(folder, name))
        _flush_entry(Path(folder))
    if path.is_file():
        _flush_entry(path)
    _flush_entry(path.parent)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
