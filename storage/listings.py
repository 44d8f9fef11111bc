"""The worklist's own rows: where each series stands, kept up to date in the transaction that changes it.

A million series can be searched at once because a listing has a *kind*: source, scanner, standing, reason, model and
finding together. There are few kinds, and the listings of each are in one piece of an index, by time. So whatever
combination is asked for, a page is merged from the newest of those kinds that match (see worklist.py). How many series
a week had of each kind is counted here too.

`touch` collects; `Database.transaction` brings the listings up to date just before its COMMIT, after the audit rows and
thus under the lock of their chain, as with `tallies`. A series is listed when it opens; until it has an outcome, its
listing does not change. So receiving costs one row for each series and nothing for each instance.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, insert, select, text

from storage.coded import positive_column
from storage.first_finding import with_first_finding
from storage.models import codes, findings, jobs, listing_kinds, listings, results, series
from storage.prepared import Prepared

PENDING, REMOVED = "touched_series", "removed_listings"
MANY_KINDS = 4000
"""From so many kinds on, new scanners are listed as OTHERS; from twice as many on, new sources too. Both are names
that a sender chooses."""
OTHERS = "(others)"
LONGEST_SCANNER = 64
OF_CANARIES = "canary of this node"
"""In place of the AE title that sent it: longer than one can be, so that nobody is called so."""
ALL_WEEKS = ""
"""In place of a week: the count of all weeks."""


class Standing(StrEnum):
    """Where a series stands, or one model's result on it.

    PENDING: it has no outcome yet. KEPT: it is not to be analysed, and nothing is reported about it.
    """

    PENDING = "PENDING"
    ANALYSED = "ANALYSED"
    NOT_ANALYSED = "NOT_ANALYSED"
    FAILED = "FAILED"
    KEPT = "KEPT"


class Said(StrEnum):
    """What a result's first finding says."""

    POSITIVE = "POSITIVE"
    NEGATIVE = "NEGATIVE"
    NOTHING = ""


@dataclass(frozen=True)
class Kind:
    """What listings have in common. Empty texts: it has none.

    source: calling AE title. scanner: manufacturer and station name. model: its name and version.
    reason_code: why it was not analysed, or why it is only kept. finding: a `Said`.
    """

    source: str
    scanner: str
    standing: str
    reason_code: str = ""
    model: str = ""
    finding: str = ""


KIND = tuple(field.name for field in fields(Kind))


@dataclass(frozen=True)
class Listed:
    """One listing as it should be. result_id, job_id: of what it tells; job_id only for a job that failed."""

    kind: Kind
    result_id: int | None = None
    job_id: int | None = None
    probability: float | None = None


FIND_KIND = Prepared(select(listing_kinds.c.id).where(*(listing_kinds.c[name] == bindparam(name) for name in KIND)))
OWN = ("kind", "result_id", "job_id", "probability")
INSERT_LISTING = Prepared(insert(listings), ["series_pk", "received_at", *OWN])
COUNT = Prepared(
    text(
        "INSERT INTO listing_weeks (week, kind, rows) VALUES (:week, :kind, :rows) "
        "ON CONFLICT (week, kind) DO UPDATE SET rows = listing_weeks.rows + excluded.rows"
    )
)
SERIES_COLUMNS = (
    *("first_instance_at", "calling_ae", "manufacturer", "station_name", "state", "revision"),
    *("selection", "refusal_code", "imported", "canary"),
)
SELECT_SERIES = Prepared(select(*(series.c[name] for name in SERIES_COLUMNS)).where(series.c.id == bindparam("pk")))
UNDECIDED = ("WAITING", "CHOSEN")  # of Selection: its job is still to come
WAITING = frozenset({"QUEUED", "RUNNING"})  # of JobState: a listing does not tell them apart


def touch(tx: Connection, series_pk: int) -> None:
    """Note that a series may stand elsewhere after this transaction."""
    tx.info.setdefault(PENDING, set()).add(series_pk)


def forget(tx: Connection) -> None:
    """Drop what was noted: its transaction did not happen."""
    tx.info.pop(PENDING, None)
    tx.info.pop(REMOVED, None)


def remove(tx: Connection, series_pk: int) -> None:
    """Delete the listings of a series that is about to be deleted; their counts follow with `flush`."""
    counts = tx.info.setdefault(REMOVED, {})
    of_series = listings.c.series_pk == series_pk
    for kind, received_at in tx.execute(select(listings.c.kind, listings.c.received_at).where(of_series)).all():
        for week in (week_of(received_at), ALL_WEEKS):
            counts[week, kind] = counts.get((week, kind), 0) - 1
    tx.execute(delete(listings).where(of_series))
    tx.info.get(PENDING, set()).discard(series_pk)


def flush(tx: Connection) -> None:
    """Bring the listings of the noted series up to date. `Database.transaction` calls this before COMMIT."""
    touched: set[int] = tx.info.pop(PENDING, set())
    counts: dict[tuple[str, int], int] = tx.info.pop(REMOVED, {})
    for series_pk in sorted(touched):
        _update(tx, series_pk, counts)
    rows = [{"week": week, "kind": kind, "rows": rows} for (week, kind), rows in sorted(counts.items()) if rows]
    if rows:
        COUNT.execute(tx, *rows)


def week_of(at: float) -> str:
    """The Monday (UTC) of the week of a moment, "2026-11-23"."""
    day = datetime.fromtimestamp(at, UTC).date()
    return (day - timedelta(days=day.weekday())).isoformat()


def scanner_of(manufacturer: str, station_name: str) -> str:
    """The name of a scanner, from two texts of the header."""
    return f"{manufacturer} {station_name}".strip(" ")[:LONGEST_SCANNER]


def listed(tx: Connection, series_pk: int) -> tuple[float, list[Listed]]:
    """When a series was first received, and how it is to be listed: a listing for each current reported result and for
    each failed analysis; if it has none of these, one that says that it waits or is kept. What was imported for a batch
    is not listed: nobody sent it.
    """
    row = dict(zip(SERIES_COLUMNS, SELECT_SERIES.execute(tx, {"pk": series_pk})[0], strict=True))
    if row["imported"]:
        return row["first_instance_at"], []
    origin = (
        OF_CANARIES if row["canary"] else str(row["calling_ae"]),
        scanner_of(row["manufacturer"], row["station_name"]),
    )
    unfinished = _jobs(tx, series_pk, row["revision"])
    found = [_of_result(origin, result) for result in _results(tx, series_pk)]
    found += [
        Listed(Kind(*origin, Standing.FAILED, model=f"{job['model_name']} {job['model_version']}"), job_id=job["id"])
        for job in unfinished
        if job["state"] == "FAILED"
    ]
    return row["first_instance_at"], found or [_without_outcome(origin, row, unfinished)]


def _results(tx: Connection, series_pk: int) -> Iterable[RowMapping]:
    columns = [results.c[name] for name in ("id", "outcome", "reason_code", "model_name", "model_version")]
    query = select(*columns, findings.c.certainty, positive_column(codes).label("positive"))
    current = (results.c.series_pk == series_pk) & results.c.superseded_at.is_(None) & results.c.shadow.is_(False)
    return tx.execute(with_first_finding(query, results).where(current).order_by(results.c.id)).mappings()


def _jobs(tx: Connection, series_pk: int, revision: int) -> list[RowMapping]:
    unfinished = jobs.c.state.in_([*sorted(WAITING), "FAILED"]) & (jobs.c.revision == revision)
    columns = [jobs.c[name] for name in ("id", "state", "model_name", "model_version")]
    query = select(*columns).where(jobs.c.series_pk == series_pk, unfinished, jobs.c.shadow.is_(False))
    return list(tx.execute(query.order_by(jobs.c.id)).mappings())


def _of_result(origin: tuple[str, str], row: RowMapping) -> Listed:
    said = {True: Said.POSITIVE, False: Said.NEGATIVE}.get(row["positive"], Said.NOTHING)
    model = f"{row['model_name']} {row['model_version']}"
    kind = Kind(*origin, Standing(row["outcome"]), row["reason_code"] or "", model, said)
    return Listed(kind, result_id=row["id"], probability=row["certainty"])


def _without_outcome(origin: tuple[str, str], row: dict[str, Any], unfinished: list[RowMapping]) -> Listed:
    if row["state"] == "OPEN" or unfinished or row["selection"] in UNDECIDED:
        return Listed(Kind(*origin, Standing.PENDING))
    return Listed(Kind(*origin, Standing.KEPT, row["refusal_code"] or ""))


def _update(tx: Connection, series_pk: int, counts: dict[tuple[str, int], int]) -> None:
    received_at, wanted = listed(tx, series_pk)
    rows = [(kind_id(tx, one.kind), one.result_id, one.job_id, one.probability) for one in wanted]
    columns = (listings.c.id, *(listings.c[name] for name in OWN))
    held = {tuple(row[1:]): row[0] for row in tx.execute(select(*columns).where(listings.c.series_pk == series_pk))}
    gone, added = [key for key in held if key not in rows], [key for key in rows if key not in held]
    if gone:
        tx.execute(delete(listings).where(listings.c.id.in_([held[key] for key in gone])))
    if added:
        place: dict[str, object] = {"series_pk": series_pk, "received_at": received_at}
        INSERT_LISTING.execute(tx, *({**place, **dict(zip(OWN, key, strict=True))} for key in added))
    for keys, change in ((gone, -1), (added, 1)):
        for kind, *_ in keys:
            for week in (week_of(received_at), ALL_WEEKS):
                counts[week, kind] = counts.get((week, kind), 0) + change


def kind_id(tx: Connection, kind: Kind) -> int:
    """The number of a kind, which is made if there is none. With very many kinds, see MANY_KINDS."""
    values = {name: str(getattr(kind, name)) for name in KIND}
    for name, most in (("scanner", MANY_KINDS), ("source", 2 * MANY_KINDS)):
        found = FIND_KIND.execute(tx, values)
        if found:
            return int(found[0][0])
        if (tx.scalar(select(func.max(listing_kinds.c.id))) or 0) < most:
            break
        values[name] = OTHERS
    found = FIND_KIND.execute(tx, values)
    if found:
        return int(found[0][0])
    return int(tx.execute(insert(listing_kinds).values(values).returning(listing_kinds.c.id)).scalar_one())
