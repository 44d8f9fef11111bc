"""Is the audit trail whole? Its chain shows what was altered or removed; its end must be compared with a noted one."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage import audit
from storage.clock import TOLERANCE_S
from storage.errors import NotFound
from storage.models import audit as rows
from storage.models import results
from storage.results import content_sha256

Head = tuple[int, str]


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


def check(tx: Connection, expected: Head | None = None) -> Check:
    """Walk the whole trail. expected: the head noted after an earlier check."""
    broken = audit.verify(tx)
    problems = [f"row {broken.audit_id}: {broken.reason}"] if broken else []
    if expected is not None:
        problems += _against(tx, expected)
    problems += _altered_results(tx)
    if _ends_before_last_result(tx):
        problems.append("the last row is older than the last result: rows were cut off the end")
    return Check(tx.scalar(select(func.count()).select_from(rows)) or 0, audit.head(tx), tuple(problems))


def _against(tx: Connection, expected: Head) -> list[str]:
    number, digest = expected
    held = tx.scalar(select(rows.c.hash).where(rows.c.id == number))
    if held is None:
        return [f"row {number}, which was noted, is not there: rows were cut off the end, or the index is older"]
    if held != digest:
        return [f"row {number} is not the one that was noted: the trail was written anew"]
    return []


def _altered_results(tx: Connection) -> Iterator[str]:
    """Results that are not what their audit rows sealed. Rows that an earlier version wrote have no seal."""
    sealed = select(rows.c.result_id, rows.c.detail).where(rows.c.event == "result.recorded").order_by(rows.c.id)
    for row in tx.execute(sealed).all():
        seal = json.loads(row.detail or "{}").get("content_sha256")
        if seal is None:
            continue
        try:
            held = content_sha256(tx, row.result_id)
        except NotFound:
            yield f"result {row.result_id} is no longer in the index"
            continue
        if held != seal:
            yield f"result {row.result_id} or its objects were altered after they were recorded"


def _ends_before_last_result(tx: Connection) -> bool:
    last_result = tx.scalar(select(results.c.created_at).order_by(results.c.id.desc()).limit(1))
    last_row = tx.scalar(select(rows.c.at).order_by(rows.c.id.desc()).limit(1))
    return last_result is not None and (last_row is None or last_row + TOLERANCE_S < last_result)
