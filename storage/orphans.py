"""Files that no row names: what a crash between a file and its row leaves behind. None of them was acknowledged.

They are not deleted: the sweep moves them to a folder named by the day, where they stay for some time. If the index
did not belong to these files, all of them would look unknown. So the sweep takes only a few of its own accord.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection, delete, insert, select

from storage import audit
from storage.copies import SAME
from storage.database import Database
from storage.facts import get_fact, set_fact
from storage.files import FileStore
from storage.models import conflicts, instances, properties, result_objects

log = structlog.get_logger()

FREELY, FREE_SHARE = 20, 0.05
"""This many files, or this share of all of them if that is more, are swept without a person's word."""
QUARANTINE_DAYS = 14.0
LAST_SWEEP = "last sweep"
RETIRED = "retention"
SHOWN = 20
AT_ONCE = 500
LISTED = "files listed"
LIST_ALL_EVERY_S, RECENT_S = 7 * 86_400.0, 3 * 86_400.0


@dataclass
class Survey:
    """The files below the root, by what the rows say of them. files: their number. named: of those, what a row names.

    unknown: no row names them. lost: a row names them and says that they are missing, although they are there.
    retired: they were to be deleted, by retention or as second copies.
    """

    files: int = 0
    named: int = 0
    unknown: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)


def freely_swept(files: int) -> int:
    """How many of this many files may be swept without a person's word."""
    return max(FREELY, int(files * FREE_SHARE))


def survey(database: Database | None, files: FileStore, older_than: float, since: float = 0.0) -> Survey:
    """Look at the files last written before `older_than` (Unix seconds). Without an index, no row names anything.

    since: see `FileStore.folders`.
    """
    found = Survey()
    for count, paths in files.folders(older_than, since):
        found.files += count
        # Asked after listing: a row that is written in between is seen.
        rows = _rows(database, paths)
        found.named += len(rows)
        for path in paths:
            if path not in rows:
                found.unknown.append(path)
            elif rows[path] == "missing":
                found.lost.append(path)
            elif rows[path] == RETIRED:
                found.retired.append(path)
    return found


def _rows(database: Database | None, paths: Sequence[str]) -> dict[str, str | None]:
    """Those of these paths that rows name, each with the reason why the file is thought to be gone."""
    named: dict[str, str | None] = {}
    if database is None:
        return named
    for start in range(0, len(paths), AT_ONCE):
        with database.read() as tx:
            named.update(rows_of(tx, paths[start : start + AT_ONCE]))
    return named


def rows_of(tx: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    """As `_rows`, for some paths."""
    some = list(paths)
    named: dict[str, str | None] = {}
    objects = select(result_objects.c.path).where(result_objects.c.path.in_(some))
    named.update(dict.fromkeys(tx.scalars(objects)))
    aside = select(conflicts.c.path, conflicts.c.verdict).where(conflicts.c.path.in_(some))
    # The file of a second copy goes once it has been judged to be the same image.
    named.update({row.path: RETIRED if row.verdict == SAME else None for row in tx.execute(aside)})
    held = select(instances.c.path, instances.c.gone_reason).where(instances.c.path.in_(some))
    named.update({row.path: row.gone_reason for row in tx.execute(held)})
    return named


@dataclass(frozen=True)
class Sweep:
    """taken: the paths that were set aside, in `folder`. held_back: how many were left because they were too many."""

    taken: tuple[str, ...] = ()
    held_back: int = 0
    folder: str = ""


def sweep_regularly(database: Database, files: FileStore, now: float, age_s: float) -> Sweep:
    """As `sweep`, while the node runs.

    A store that lists slowly is listed as a whole once a week, because deleting may have been interrupted anywhere.
    Otherwise only its last days are: that is where a process that was killed leaves a file without a row.
    """
    if not files.lists_slowly:
        return sweep(database, files, now, age_s)
    with database.read() as tx:
        last = float(get_fact(tx, LISTED) or 0.0)
    is_due = not last <= now < last + LIST_ALL_EVERY_S
    done = sweep(database, files, now, age_s, since=0.0 if is_due else now - RECENT_S)
    if is_due:
        with database.transaction() as tx:
            set_fact(tx, LISTED, str(now))
    return done


def sweep(
    database: Database, files: FileStore, now: float, age_s: float, *, since: float = 0.0, everything: bool = False
) -> Sweep:
    """Set aside the files that no row names and that are older than `age_s` seconds, audited as an alarm.

    since: see `FileStore.folders`.
    everything: take them however many there are; otherwise none is taken if there are too many (see `freely_swept`).
    Files that were being deleted when the node stopped are deleted.
    """
    found = survey(database, files, now - age_s, since)
    files.remove_all(found.retired)
    unknown = found.unknown
    if not unknown:
        return Sweep()
    if len(unknown) > freely_swept(found.files) and not everything:
        done = Sweep(held_back=len(unknown))
        log.warning("files that no row names are left: they are too many", files=len(unknown), of=found.files)
        _record(database, now, done, unknown, found.files)
        return done
    done = Sweep(tuple(unknown), folder=files.quarantine_of(now))
    # Before they go: after a crash in between they are swept and audited again, so none disappears unrecorded.
    log.warning("files that no row names are set aside", files=len(unknown), of=found.files, folder=done.folder)
    _record(database, now, done, unknown, found.files)
    for path in unknown:
        files.set_aside(path, done.folder)
    return done


def _record(database: Database, now: float, done: Sweep, unknown: Sequence[str], of: int) -> None:
    event, outcome = ("files.swept", "SWEPT") if done.taken else ("files.not-swept", "TOO_MANY")
    detail = {"files": len(unknown), "of": of, "folder": done.folder, "first": list(unknown[:SHOWN])}
    with database.transaction() as tx:
        audit.append(tx, now, event, outcome=outcome, detail=detail)
        tx.execute(delete(properties).where(properties.c.name == LAST_SWEEP))
        value = json.dumps({"at": now, "outcome": outcome, "files": len(unknown), "folder": done.folder})
        tx.execute(insert(properties).values(name=LAST_SWEEP, value=value))


def last_sweep(tx: Connection) -> dict[str, object] | None:
    """When files were last swept, or left because they were too many; None if that never happened."""
    value = tx.scalar(select(properties.c.value).where(properties.c.name == LAST_SWEEP))
    return dict(json.loads(value)) if value else None


def empty_quarantine(database: Database, files: FileStore, now: float, days: float = QUARANTINE_DAYS) -> int:
    """Delete what was set aside more than `days` days ago, audited. Returns how many files."""
    before = datetime.fromtimestamp(now, UTC) - timedelta(days=days)
    deleted = 0
    for folder, paths in files.quarantined():
        if datetime.fromisoformat(folder.rpartition("/")[2]).replace(tzinfo=UTC) + timedelta(days=1) > before:
            continue
        detail = {"files": len(paths), "folder": folder}
        with database.transaction() as tx:
            audit.append(tx, now, "quarantine.deleted", outcome="DELETED", detail=detail)
        deleted += files.delete_quarantine(folder)
    return deleted
