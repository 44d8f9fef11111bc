"""Rows of the audit trail out of which a patient was taken: what is left of them, and what proves the rest.

Whatever leads to the patient goes: identifiers, UIDs, numbers of rows, the detail. What happened, when, and with which
peer stays, and so does the row's hash, which the next row follows. That hash can no longer be computed. In its place
the audit row EVENT, of the same transaction, holds a digest over what is left of the rows. So a row that is altered
afterwards still shows, and nobody can take a patient out of the trail without the trail saying so.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

EVENT = "audit.forgotten"
GONE = ("patient_id", "study_uid", "series_uid", "sop_uid", "job_id", "result_id")
LEFT = ("id", "at", "event", "peer_ae", "address", "outcome", "previous", "hash")
MARK = '{"forgotten": "'


def emptied(part: str) -> dict[str, Any]:
    """The columns of a row out of which a patient is taken. part: which rows belong together, such as "3.1"."""
    return {**dict.fromkeys(GONE), "detail": f'{MARK}{part}"}}'}


def part_of(row: Mapping[str, Any]) -> str | None:
    """The part that a row was emptied with; None for a whole row."""
    detail: str | None = row["detail"]
    if not detail or not detail.startswith(MARK) or any(row[name] is not None for name in GONE):
        return None
    return detail[len(MARK) : -2]


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 hex over what is left of rows, in their order."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(_left(row))
    return whole.hexdigest()


def _left(row: Mapping[str, Any]) -> bytes:
    return json.dumps([row[name] for name in LEFT], ensure_ascii=False).encode() + b"\n"


class Seals:
    """Compares the emptied rows of a trail with what it says about them."""

    def __init__(self) -> None:
        self._found: dict[str, hashlib._Hash] = {}
        self._told: dict[str, str] = {}
        self.archives: set[str] = set()
        """Digests of the archives that were written anew."""

    def see(self, row: Mapping[str, Any]) -> None:
        """The next row of the trail."""
        part = part_of(row)
        if part is not None:
            self._found.setdefault(part, hashlib.sha256()).update(_left(row))
        elif row["event"] == EVENT:
            told = json.loads(row["detail"])
            self._told[told["part"]] = told["sha256"]
            if "archive_sha256" in told:
                self.archives.add(told["archive_sha256"])

    def problems(self) -> Iterator[str]:
        """What does not hold, after the whole trail was seen."""
        for part in sorted(self._found.keys() | self._told.keys()):
            found = self._found[part].hexdigest() if part in self._found else None
            if part not in self._told:
                yield f"rows marked as forgotten ({part}): no audit row tells of it"
            elif found != self._told[part]:
                yield f"rows out of which a patient was taken ({part}): they were altered afterwards"
