"""Taking a patient out of the audit trail: the rows of the index, then the archives. The chain stays whole.

Each piece of rows is emptied in the transaction that records the digest of what is left of them (see forgotten.py). An
archive is written anew under another name, made durable and recorded before the former file goes.
"""

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, literal, or_, select, update

from storage import audit, audit_archive, forgotten
from storage.audit_archive import Archive, archived_rows, archives
from storage.database import Database
from storage.forgetting import About, Forgetting, overwrite_what_is_deleted
from storage.models import audit as rows
from storage.models import audit_archives, forgettings
from storage.private import fsync_folder

RANGE = 20_000
"""Numbers of rows that are looked through at once."""
AT_ONCE = 500
"""Rows that are emptied in one transaction."""
SHORTEST_IN_DETAIL = 10
"""Characters of a UID that is looked for in details. What a sender calls a UID may be as short as "1"."""
SHORTEST_IN_SQL = 4
"""Characters of a Patient ID that is looked for as a word of a question in SQL; a shorter one only in quotes."""
SET_ASIDE = ("instance.conflict", "instance.second-copy", "instance.same-image")
"""Their rows say whose the instance was, and that may be somebody else beside whose series it was set aside."""
NEVER = ("audit.archived", "audit.forgotten")
"""What the check of the trail needs."""


def empty_rows(database: Database, one: Forgetting, upto: int) -> None:
    """Empty the rows of the index that lead to the patient, up to a row's number."""
    who = Leads(About.read(one.about))
    with database.read() as tx:
        start = int(tx.scalar(select(func.min(rows.c.id))) or 0)
    while start <= upto:
        end = min(start + RANGE - 1, upto)
        with database.read() as tx:
            found = [row["id"] for row in _leading(tx, who, rows.c.id.between(start, end))]
        for piece in range(0, len(found), AT_ONCE):
            with database.transaction() as tx:
                _empty_piece(tx, one, who, found[piece : piece + AT_ONCE], database.now())
        start = end + 1


class Leads:
    """Which rows lead to a patient: those that name them or their studies and series, also in the detail."""

    def __init__(self, who: About) -> None:
        self._patient_ids, self._uids, self._known_as = set(who.patient_ids), set(who.uids), set(who.known_as)
        long = sorted(re.escape(uid) for uid in who.uids if len(uid) >= SHORTEST_IN_DETAIL)
        self._named = re.compile(rf"(?<![\d.])(?:{'|'.join(long)})(?![\d.])") if long else None
        self._long = [uid for uid in who.uids if len(uid) >= SHORTEST_IN_DETAIL]

    def may(self) -> ColumnElement[bool]:
        """A condition that all these rows fulfil, and few others. Only those that are rare have such details."""
        named = or_(
            literal(value=False),
            *(rows.c.detail.contains(uid, autoescape=True) for uid in self._long),
            *(rows.c.detail.icontains(one, autoescape=True) for one in _in_json(self._patient_ids)),
        )
        return or_(
            rows.c.patient_id.in_(self._patient_ids),
            rows.c.study_uid.in_(self._uids),
            rows.c.series_uid.in_(self._uids),
            and_(audit.RARE, named),
        )

    def do(self, row: Mapping[str, Any]) -> bool:
        """Whether a row leads to the patient."""
        if row["event"] in NEVER or (
            row["event"] in SET_ASIDE and self._known_as and row["patient_id"] not in self._known_as
        ):
            return False
        if row["patient_id"] in self._patient_ids or {row["study_uid"], row["series_uid"]} & self._uids:
            return True
        if self._named is not None and self._named.search(row["detail"] or ""):
            return True
        return row["event"] != audit.RECEIVED and bool(row["detail"]) and self._says(json.loads(row["detail"]))

    def _says(self, detail: Mapping[str, Any]) -> bool:
        """Whether a detail notes a search for the patient, or a question in SQL that names them."""
        asked, sql = detail.get("asked"), detail.get("sql")
        named = {text.casefold() for text in asked.values() if isinstance(text, str)} if isinstance(asked, dict) else ()
        if not {one.casefold() for one in self._patient_ids}.isdisjoint(named):
            return True
        return isinstance(sql, str) and any(_is_in_sql(one, sql) for one in self._patient_ids)


def _in_json(patient_ids: Iterable[str]) -> Iterator[str]:
    """As a detail may hold them."""
    for one in patient_ids:
        yield from {json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1]}


def _is_in_sql(patient_id: str, sql: str) -> bool:
    word = re.escape(patient_id)
    named = rf"(?<!\w){word}(?!\w)" if len(patient_id) >= SHORTEST_IN_SQL else f"'{word}'"
    return re.search(named, sql.replace("''", "'"), re.IGNORECASE) is not None


def _leading(tx: Connection, who: Leads, which: ColumnElement[bool]) -> list[dict[str, Any]]:
    asked = select(rows).where(which, who.may()).order_by(rows.c.id)
    if not tx.get_execution_options().get("reading"):
        asked = asked.with_for_update()
    return [dict(row) for row in tx.execute(asked).mappings() if who.do(dict(row))]


def _empty_piece(tx: Connection, one: Forgetting, who: Leads, numbers: Sequence[int], now: float) -> None:
    overwrite_what_is_deleted(tx)
    found = _leading(tx, who, rows.c.id.in_(numbers))
    if not found:
        return  # another process was faster
    part = f"{one.id}.{found[0]['id']}"
    mine = rows.c.id.in_([row["id"] for row in found])
    tx.execute(update(rows).where(mine).values(forgotten.emptied(part)))
    _tell(tx, one, now, {"part": part, "rows": len(found), "sha256": forgotten.digest(found)})


def _tell(tx: Connection, one: Forgetting, now: float, detail: dict[str, Any]) -> None:
    audit.append(tx, now, "audit.forgotten", outcome="EMPTIED", detail={"number": one.id, **detail})
    counted = forgettings.c.audit_rows + detail["rows"]
    tx.execute(update(forgettings).where(forgettings.c.id == one.id).values(audit_rows=counted))


def empty(database: Database, one: Forgetting, upto: int, folder: Path) -> None:
    """Empty all rows that lead to the patient: those of the index up to a number, then those of archives in a folder.

    Meanwhile nothing else is archived there: rows must not be on their way from here to there while they are emptied.
    Raises CorruptFile if an archive is gone or was altered, OSError if there is no room to write one anew.
    """
    with audit_archive.alone_in(folder):
        empty_rows(database, one, upto)
        empty_archives(database, one, folder)


def missing_archives(database: Database, folder: Path) -> list[str]:
    """The names of recorded archives that are not in a folder."""
    with database.read() as tx:
        return [one.file for one in archives(tx) if not (folder / one.file).is_file()]


def empty_archives(database: Database, one: Forgetting, folder: Path) -> None:
    """Write the archives anew that lead to the patient. Raises CorruptFile if one is gone or was altered."""
    with database.read() as tx:
        held = archives(tx)
    who = Leads(About.read(one.about))
    for archive in held:
        _remove_former(folder, archive)
        numbers = [row["id"] for row in archived_rows(folder, archive) if who.do(row)]
        if numbers:
            _write_anew(database, one, folder, archive, set(numbers))


def _write_anew(database: Database, one: Forgetting, folder: Path, archive: Archive, numbers: set[int]) -> None:
    part = f"{one.id}.{min(numbers)}"
    name = f"{_stem(archive)}.without-{one.id}.jsonl.gz"
    emptied = []
    unfinished = folder / "audit.unfinished"
    with (
        audit_archive.new_file(unfinished) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        for row in archived_rows(folder, archive):
            if row["id"] in numbers:
                emptied.append(row | forgotten.emptied(part))
            packed.write(audit_archive.line_of(emptied[-1] if row["id"] in numbers else row))
    os.replace(unfinished, folder / name)
    fsync_folder(folder)
    sha256 = audit_archive.sha256_of(folder / name)
    with database.transaction() as tx:
        mine = audit_archives.c.last_id == archive.last_id
        tx.execute(update(audit_archives).where(mine).values(file=name, sha256=sha256))
        told = {"part": part, "rows": len(emptied), "sha256": forgotten.digest(emptied)}
        _tell(tx, one, database.now(), {**told, "archive": name, "archive_sha256": sha256})
    if archive.file != name:
        (folder / archive.file).unlink()
        fsync_folder(folder)


def _stem(archive: Archive) -> str:
    """What the names of an archive have in common: its first and last row."""
    return archive.file.partition(".")[0]


def _remove_former(folder: Path, archive: Archive) -> None:
    """A crash may have left the file that this one took the place of, or one that was not recorded."""
    for path in folder.glob(f"{_stem(archive)}.*"):
        if path.name != archive.file:
            path.unlink()
