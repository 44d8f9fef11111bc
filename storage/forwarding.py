"""How far the audit trail has been told outside, and reading it from there: from the index, or from its archives.

The place is one value of `properties`. It names the row up to which everything has been told, by number and hash, and
keeps what was gathered for a message that is not complete yet. A lease keeps a second node of the same index quiet.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, insert, select, update

from storage import audit
from storage.audit_archive import archived_rows, archives
from storage.database import Database
from storage.errors import StaleLease
from storage.facts import get_fact
from storage.models import audit as rows
from storage.models import properties

PLACE = "audit.forwarded"
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """How far the trail has been told.

    number, hash: of the last row that was told. gathered: what is not complete yet, JSON types. pending: what is being
    sent at present, so that it is sent again as it was; None if nothing is. head_at: when the head was told last.
    holder, until: who forwards, and until when nobody else does. error: why it does not get on, since `failed_at`.
    """

    number: int
    hash: str
    gathered: tuple[Mapping[str, Any], ...] = ()
    pending: Mapping[str, Any] | None = None
    head_at: float = 0.0
    holder: str = ""
    until: float = 0.0
    error: str | None = None
    failed_at: float | None = None
    raw: str | None = field(default=None, compare=False)

    def text(self) -> str:
        """As it is kept."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "raw"}, ensure_ascii=False)


def place(tx: Connection) -> Place | None:
    """How far the trail has been told; None if that never began."""
    raw = get_fact(tx, PLACE)
    if raw is None:
        return None
    held = json.loads(raw)
    return Place(**{**held, "gathered": tuple(held["gathered"]), "raw": raw})


def keep(tx: Connection, new: Place) -> Place:
    """Keep a place made from one that was read. Raises StaleLease if somebody else has kept one since."""
    text = new.text()
    if new.raw is None:
        if get_fact(tx, PLACE) is not None:
            raise StaleLease("another process has begun to forward the audit trail")
        tx.execute(insert(properties).values(name=PLACE, value=text))
    elif text != new.raw:
        unchanged = (properties.c.name == PLACE, properties.c.value == new.raw)
        if tx.execute(update(properties).where(*unchanged).values(value=text)).rowcount != 1:
            raise StaleLease("another process forwards the audit trail")
    return replace(new, raw=text)


def lag(tx: Connection, now: float) -> dict[str, Any] | None:
    """rows: how many are not told yet, at most. seconds: how long the first of them has waited. error: why. None if
    the trail is told to nobody."""
    found = place(tx)
    if found is None:
        return None
    head = audit.head(tx)[0]
    oldest = tx.scalar(select(rows.c.at).where(rows.c.id > found.number).order_by(rows.c.id).limit(1))
    # Rows that went into an archive before they were told have waited longer than any that is left.
    told = audit.archived(tx)[0] <= found.number
    since = oldest if told or found.failed_at is None else min(found.failed_at, oldest or found.failed_at)
    seconds = max(0.0, now - since) if since is not None else None
    return {"rows": max(0, head - found.number), "seconds": seconds, "error": found.error}


def last_row_is_there(tx: Connection, found: Place) -> bool:
    """Whether the trail still has the row that was told last: neither cut off before it nor written anew."""
    if found.number == 0:
        return True
    held = tx.scalar(select(rows.c.hash).where(rows.c.id == found.number))
    if held is not None:
        return bool(held == found.hash)
    last, digest = audit.archived(tx)
    return last > found.number or (last, digest) == (found.number, found.hash)


def next_rows(number: int, limit: int) -> Select[Any]:
    """The statement that reads the rows after a number from the index."""
    return select(rows).where(rows.c.id > number).order_by(rows.c.id).limit(limit)


class Trail:
    """Reads the rows in their order, a piece at a time. folder: where the archives are."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._archived: Generator[Row, None, None] | None = None
        self._read = -1

    def after(self, number: int, limit: int, upto: int | None = None) -> list[Row]:
        """The rows after a number, to `upto` if it is given; at most `limit`.

        Raises CorruptFile if an archive that has them is not there, or was altered.
        """
        found, last = self._from_index(number, limit, upto)
        if last <= number:
            return found
        found = self._from_archives(number, limit, upto)
        if found and len(found) < limit:
            more, last = self._from_index(found[-1]["id"], limit - len(found), upto)
            found += more if last <= found[-1]["id"] else []  # archived meanwhile: next time
        return found

    def _from_index(self, number: int, limit: int, upto: int | None) -> tuple[list[Row], int]:
        """Rows, and the number of the last row in an archive."""
        wanted = next_rows(number, limit)
        if upto is not None:
            wanted = wanted.where(rows.c.id <= upto)
        with self._database.read() as tx:
            found = [dict(row) for row in tx.execute(wanted).mappings()]
            # Asked for last: what is recorded as an archive meanwhile may be gone from the index already.
            return found, audit.archived(tx)[0]

    def between(self, number: int, upto: int) -> list[Row]:
        """The rows after a number, to `upto`, wherever they are by now. Raises CorruptFile, see `after`."""
        found: list[Row] = []
        while more := self.after(found[-1]["id"] if found else number, upto - number, upto):
            found += more
        return found

    def _from_archives(self, number: int, limit: int, upto: int | None) -> list[Row]:
        if self._archived is None or self._read != number:
            self._archived = self._open(number)
        found: list[Row] = []
        for row in self._archived:
            found.append(row)
            if len(found) == limit or row["id"] == upto:
                break
        else:
            self._archived = None
        self._read = found[-1]["id"] if found else -1
        return found

    def _open(self, number: int) -> Generator[Row, None, None]:
        with self._database.read() as tx:
            held = [one for one in archives(tx) if one.last_id > number]
        for one in held:
            yield from (row for row in archived_rows(self._folder, one) if row["id"] > number)


def breaks(previous: str, found: list[Row]) -> Iterator[tuple[Row, str]]:
    """The rows that do not follow the one before them, with the reason. previous: the hash before the first."""
    for row in found:
        reason = audit.why_broken(previous, row)
        if reason is not None:
            yield row, reason
        previous = row["hash"]
