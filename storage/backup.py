"""A copy of a SQLite index, made while others use it: a single file that holds exactly what was committed."""

import contextlib
import os
import sqlite3
from pathlib import Path

from storage.private import fsync_folder


def back_up(index: Path, target: Path) -> None:
    """Copy the index to `target`, readable by its owner only, and make it durable; an earlier copy is replaced.

    Raises sqlite3.Error or OSError; then `target` holds an earlier copy or nothing.
    """
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        _copy(index, unfinished)
        os.replace(unfinished, target)
        fsync_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(index: Path, target: Path) -> None:
    """SQLite syncs the target itself; no log is left beside it, so that it can be moved as one file."""
    with (
        contextlib.closing(sqlite3.connect(index)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
