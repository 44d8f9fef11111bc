"""A folder of backups: who may write there, which of them is the newest, and which make room."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dicom_node.backup.manifest import Manifest, read_manifest
from dicom_node.errors import NodeError
from storage.private import fsync_folder

PREFIX, UNFINISHED, LOCK = "backup-", ".unfinished", ".backup.lock"


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """One backup at a time below a folder; what one that was killed has left is removed."""
    fd = os.open(target / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in target.glob(f"{PREFIX}*{UNFINISHED}"):
            shutil.rmtree(folder)
        yield
    except BlockingIOError:
        raise NodeError(f"another backup is being made in {target}; wait for its end") from None
    finally:
        os.close(fd)


def backups_of(target: Path, store: str) -> list[Path]:
    """The whole backups of a store below a folder, the newest first."""
    found: list[tuple[tuple[int, int, float], Path]] = []
    for folder in target.glob(f"{PREFIX}*Z"):
        with contextlib.suppress(NodeError):
            manifest, _ = read_manifest(folder)
            if manifest.store == store:
                found.append((_age(manifest), folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def _age(manifest: Manifest) -> tuple[int, int, float]:
    """Larger for a later backup. The audit trail only grows, and a restore begins an epoch; a clock may be set back."""
    return manifest.epoch, manifest.head[0], manifest.made_at


def remove_older(target: Path, made: Path, store: str, keep: int) -> Iterator[Path]:
    """Remove all of a store but the one just made and the newest others, `keep` in all.

    Each loses its name first: what a crash leaves is no backup.
    """
    others = [folder for folder in backups_of(target, store) if folder != made]
    for folder in others[keep - 1 :]:
        leaving = folder.with_name(f"{folder.name}{UNFINISHED}")
        os.rename(folder, leaving)
        fsync_folder(target)
        shutil.rmtree(leaving)
        yield folder
