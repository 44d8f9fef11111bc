"""Compares instances that came again in other bytes with those that the node holds, a few at a time."""

import structlog

from dicom_node.logs import short
from inference.volume.same_image import difference
from storage import copies
from storage.copies import SecondCopy
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore, StoredFile
from storage.lost import mark_lost
from storage.models import instances

log = structlog.get_logger()

AT_ONCE = 20
"""How many are compared in one go: the workers need the processors more."""
MAX_BYTES = 256 << 20
"""Decoded pixels of one file."""


def compare(database: Database, files: FileStore, now: float) -> int:
    """Judge the second copies that wait for it, up to AT_ONCE. Returns how many it judged.

    If the first file of one turns out to be damaged it is marked as lost, so that it does not keep others waiting.
    """
    with database.read() as tx:
        waiting = copies.to_compare(tx, AT_ONCE)
    judged = 0
    for copy in waiting:
        if not copy.retired and not _is_good(files, copy.held_path, copy.held_sha256):
            with database.transaction() as tx:
                mark_lost(tx, instances.c.path == copy.held_path, "corrupt", now)
            continue
        found = _difference(files, copy)
        with database.transaction() as tx:
            copies.judge(tx, copy, found, now)
        judged += 1
        if found is None:
            files.remove(copy.path)  # after a crash before this, the sweep does it
        else:
            log.warning("conflicting instance set aside", sop_instance=short(copy.sop_instance_uid), difference=found)
    return judged


def _difference(files: FileStore, copy: SecondCopy) -> str | None:
    if not _is_good(files, copy.path, copy.sha256):
        return "a file that is lost"
    if copy.retired:
        return "nothing to compare it with: retention has deleted the first file"
    both = [StoredFile(copy.held_path, copy.held_sha256, 0), StoredFile(copy.path, copy.sha256, 0)]
    with files.at_hand(both, {copy.held_path, copy.path}) as (held, second):
        return difference(held, second, MAX_BYTES)


def _is_good(files: FileStore, path: str, sha256: str) -> bool:
    try:
        files.read_verified(path, sha256)
    except CorruptFile:
        return False
    return True
