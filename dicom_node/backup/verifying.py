"""Reading a whole backup back: is every byte what it was, and does the index in it hold together?"""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection

from dicom_node.backup import manifest as form
from dicom_node.backup import postgresql
from dicom_node.backup.manifest import Manifest, read_manifest, sha256_in, sha256_of, sums_of
from dicom_node.backup.points import opened
from dicom_node.backup.wanted import wanted
from dicom_node.errors import NodeError
from storage import audit
from storage.audit_check import check
from storage.database import migrations
from storage.files import StoredFile, is_quarantined
from storage.schema_versions import script_of

Report = Callable[[str, int, int], None]
BESIDE = (form.MANIFEST, form.SUMS)


def problems(folder: Path, report: Report = lambda what, done, of: None) -> Iterator[str]:
    """Everything that is wrong with a backup, a sentence each. Raises NodeError if it is none, or its manifest was
    altered."""
    manifest, _ = read_manifest(folder)
    sums = folder / form.SUMS
    if not sums.is_file() or sha256_of(sums) != manifest.sums_sha256:
        yield f"{form.SUMS} is missing or was altered"
        return
    wrong = list(_wrong_files(folder, manifest, report))
    yield from wrong
    if any(one.startswith(f"{manifest.index}: ") for one in wrong):
        return
    report("index", 0, 0)
    yield from _wrong_index(folder, manifest)


def _wrong_files(folder: Path, manifest: Manifest, report: Report) -> Iterator[str]:
    count = 0
    for sha256, path in sums_of(folder / form.SUMS):
        count += 1
        if count % 50 == 0:
            report("files", count, manifest.files)
        try:
            if sha256_in(folder, path) != sha256:
                yield f"{path}: it was altered"
        except NodeError as error:
            yield str(error)
        except FileNotFoundError:
            yield f"{path}: it is missing"
        except OSError as error:
            yield f"{path}: it cannot be read: {error.strerror}"
    if sum(_is_entry(path) for path in folder.rglob("*")) > count + len(BESIDE):
        yield from _not_listed(folder)


def _not_listed(folder: Path) -> Iterator[str]:
    listed = {*BESIDE, *(path for _, path in sums_of(folder / form.SUMS))}
    there = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if _is_entry(path))
    yield from (f"{path}: it does not belong to the backup" for path in there if path not in listed)


def _is_entry(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _wrong_index(folder: Path, manifest: Manifest) -> Iterator[str]:
    if manifest.engine == form.POSTGRESQL:
        unreadable = postgresql.readable(folder / form.DUMP)
        yield from [f"{form.DUMP}: {unreadable}"] if unreadable else []
        return
    damage = damage_of(folder / form.INDEX)
    if damage:
        yield f"{form.INDEX}: {damage}"
        return
    with opened(folder / form.INDEX) as tx:
        if audit.head(tx) != manifest.head:
            yield f"{form.INDEX}: its audit trail does not end at {manifest.point}"
        if is_of_this_schema(manifest):
            yield from (f"audit trail: {one}" for one in check(tx, manifest.head, folder / form.ARCHIVES).problems)
            yield from _unlike_the_list(tx, folder, manifest)


def is_of_this_schema(manifest: Manifest) -> bool:
    """Whether this version of the program can read the rows of the index without bringing it up to date."""
    return manifest.schema == script_of(migrations()).get_current_head()


def damage_of(index: Path) -> str | None:
    """What SQLite finds wrong with an index; None if it is whole."""
    connection = sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True)
    try:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()
    if found != "ok":
        return str(found)
    return f"a row of {broken[0]} refers to one that is not there" if broken else None


def _unlike_the_list(tx: Connection, folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files that the index names and the backup does not, or the other way round: both are in one order."""
    left_out = {*manifest.deleted, *manifest.lost}
    listed = stored_of(folder, manifest)
    for one in wanted(tx):
        if one.path not in left_out and next(listed, None) != StoredFile(one.path, one.sha256, 0):
            yield f"{one.path}: the index names it, and the list of files does not, or with another digest"
            return


def stored_of(folder: Path, manifest: Manifest) -> Iterator[StoredFile]:
    """The stored files of a backup, or those that it knows to be in the bucket; sizes are not known."""
    place = f"{form.FILES}/"
    for sha256, path in sums_of(folder / (form.OBJECTS if manifest.bucket else form.SUMS)):
        stored = path.removeprefix(place)
        if path.startswith(place) and not is_quarantined(stored):
            yield StoredFile(stored, sha256, 0)
