"""Is the audit trail whole? Its chain shows what was altered or removed; its end must be compared with a noted one."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from storage import audit, audit_archive, forgotten
from storage.audit_anchors import Anchors, Witnesses
from storage.audit_archive import Archive
from storage.clock import TOLERANCE_S
from storage.errors import NotFound
from storage.examinations import COMPARED, change_of
from storage.models import audit as rows
from storage.models import results
from storage.results import content_sha256

ARCHIVED, VERIFIED = "audit.archived", "audit.verified"
Head = tuple[int, str]
NO_ANCHORS: Anchors = {}
STANDS = rows.c.result_id.is_not(None)
"""Not of a forgotten patient."""


@dataclass(frozen=True)
class Check:
    """rows: how many there are. head: number and hash of the last. problems: sentences; none if the trail is whole."""

    rows: int
    head: Head
    problems: tuple[str, ...]


def parse_head(text: str) -> Head:
    """A head as it is printed, "number:hash". Raises ValueError."""
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", text.strip())
    if found is None:
        raise ValueError("a head is a row's number, a colon and the 64 hexadecimal digits of its hash")
    return int(found[1]), found[2]


def check(tx: Connection, expected: Head | None = None, folder: Path = Path(), anchors: Anchors = NO_ANCHORS) -> Check:
    """Walk the whole trail, first its archives in `folder`. expected: the head noted after an earlier check.

    anchors: hashes of rows that were noted outside, by number.
    """
    witnesses = Witnesses(anchors)
    archived = _Archived(expected, witnesses)
    held = audit_archive.archives(tx)
    problems = list(audit_archive.problems(folder, held, archived.see))
    broken = audit.verify(tx, archived.seals_of_forgotten.see)
    problems += [f"row {broken.audit_id}: {broken.reason}"] if broken else []
    # After a break not all rows were seen.
    problems += [] if problems else archived.seals_of_forgotten.problems()
    problems += _unknown_archives(tx, held, archived)
    if expected is not None:
        problems += _against(tx, expected, archived.hash)
    witnesses.ask_index(tx)
    problems += witnesses.problems()
    problems += _altered_results(tx, archived)
    problems += _altered_changes(tx, archived)
    if _ends_before_last_result(tx):
        problems.append("the last row is older than the last result: rows were cut off the end")
    later = select(func.count()).select_from(rows).where(rows.c.id > audit.archived(tx)[0])
    count = sum(one.rows for one in held) + int(tx.scalar(later) or 0)
    return Check(count, audit.head(tx), tuple(problems))


class _Archived:
    """What the archived rows say that the rest of the check needs."""

    def __init__(self, expected: Head | None, witnesses: Witnesses) -> None:
        self._witnesses = witnesses
        self._number = expected[0] if expected else None
        self.hash: str | None = None  # of the row that was noted
        self.seals: list[tuple[int, str | None]] = []
        self.compared: list[tuple[int, str]] = []
        self.digests: set[str] = set()
        self.seals_of_forgotten = forgotten.Seals()

    def see(self, row: Mapping[str, Any]) -> None:
        """Take note of a row."""
        self._witnesses.see(row["id"], row["hash"])
        self.seals_of_forgotten.see(row)
        if row["id"] == self._number:
            self.hash = row["hash"]
        if row["event"] == "result.recorded" and row["result_id"] is not None:
            self.seals.append((row["result_id"], row["detail"]))
        if row["event"] == COMPARED and row["result_id"] is not None:
            self.compared.append((row["result_id"], row["detail"]))
        if row["event"] == ARCHIVED:
            self.digests.add(json.loads(row["detail"])["sha256"])


def _unknown_archives(tx: Connection, held: Sequence[Archive], archived: _Archived) -> Iterator[str]:
    """Archives of which no audit row tells: somebody made them to be able to delete rows."""
    if not held:
        return
    told = select(rows.c.detail).where(audit.RARE, rows.c.event == ARCHIVED)
    digests = (
        archived.digests
        | archived.seals_of_forgotten.archives
        | {json.loads(detail)["sha256"] for detail in tx.scalars(told)}
    )
    yield from (f"archive {one.file}: no audit row tells of it" for one in held if one.sha256 not in digests)


def _against(tx: Connection, expected: Head, archived: str | None) -> list[str]:
    number, digest = expected
    held = archived or tx.scalar(select(rows.c.hash).where(rows.c.id == number))
    if held is None:
        return [f"row {number}, which was noted, is not there: rows were cut off the end, or the index is older"]
    if held != digest:
        return [f"row {number} is not the one that was noted: the trail was written anew"]
    return []


def _altered_results(tx: Connection, archived: _Archived) -> Iterator[str]:
    """Results that are not what their audit rows sealed. Rows that an earlier version wrote have no seal."""
    sealed = select(rows.c.result_id, rows.c.detail).where(audit.RARE, rows.c.event == "result.recorded", STANDS)
    later = sealed.where(rows.c.id > audit.archived(tx)[0]).order_by(rows.c.id)
    for result_id, detail in (*archived.seals, *tx.execute(later).all()):
        seal = json.loads(detail or "{}").get("content_sha256")
        if seal is None:
            continue
        try:
            held = content_sha256(tx, result_id)
        except NotFound:
            yield f"result {result_id} is no longer in the index"
            continue
        if held != seal:
            yield f"result {result_id} or its objects were altered after they were recorded"


def _altered_changes(tx: Connection, archived: _Archived) -> Iterator[str]:
    """Results that name another earlier result than they were compared with, or say something else of the change."""
    told = select(rows.c.result_id, rows.c.detail).where(audit.RARE, rows.c.event == COMPARED, STANDS)
    later = told.where(rows.c.id > audit.archived(tx)[0]).order_by(rows.c.id)
    for result_id, detail in (*archived.compared, *tx.execute(later).all()):
        change = change_of(tx, result_id)
        if change is None or change.seal != json.loads(detail):
            yield f"result {result_id}: its change since an earlier result was altered after it was recorded"


def _ends_before_last_result(tx: Connection) -> bool:
    last_result = tx.scalar(select(results.c.created_at).order_by(results.c.id.desc()).limit(1))
    last_row = tx.scalar(select(rows.c.at).order_by(rows.c.id.desc()).limit(1))
    return last_result is not None and (last_row is None or last_row + TOLERANCE_S < last_result)
