"""What results tell of their scans, for watching a model in use: a row for each, in the transaction of the result.

No row names a patient: sex and whole years of age, 90 for all above, are all that is kept of one. Results of batches
and of shadow models have no row, and one that a later result replaces no longer counts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, bindparam, case, func, insert, or_, select, tuple_

from storage.deliveries import DeliveryState
from storage.models import deliveries, jobs, patients, results, series, studies, turnarounds, watch_facts
from storage.prepared import Prepared

OLDEST_YEARS = 90
LONGEST_WORD = 64
PAGE = 400
"""Rows of one query: few enough that none takes longer than a few milliseconds."""
DAYS_OF_A_YEAR = 365.25
SEXES = frozenset({"M", "F", "O"})
END = (1e300, 0)


@dataclass(frozen=True)
class Facts:
    """What the headers and the pixels say of one scan; empty or None if they do not say it."""

    manufacturer: str = ""
    scanner_model: str = ""
    kernel: str = ""
    software: str = ""
    age_years: float | None = None
    thickness_mm: float | None = None
    spacing_mm: float | None = None
    pixel_mm: float | None = None
    kv: float | None = None
    mas: float | None = None
    hu_air: float | None = None
    hu_trachea: float | None = None
    hu_lung: float | None = None
    noise_hu: float | None = None
    lung_volume_ml: float | None = None
    probability: float | None = None
    positive: bool | None = None

    def without_finding(self) -> "Facts":
        """Of a scan whose finding is not reported after all."""
        return replace(self, probability=None, positive=None)


COLUMNS = tuple(column.name for column in watch_facts.c)
INSERT = Prepared(insert(watch_facts), COLUMNS)
PERSON = Prepared(
    select(results.c.model_digest, patients.c.sex, patients.c.birth_date, studies.c.study_date)
    .select_from(results.join(series).join(studies).join(patients))
    .where(results.c.id == bindparam("result"))
)


def record(tx: Connection, result_id: int, now: float, facts: Facts) -> None:
    """Keep the facts of a result that was recorded in this transaction."""
    ((digest, sex, born, scanned),) = PERSON.execute(tx, {"result": result_id})
    words = ("manufacturer", "scanner_model", "kernel", "software")
    values = {**asdict(facts), **{name: _word(getattr(facts, name)) for name in words}}
    years = age_at(born, scanned) if facts.age_years is None else int(facts.age_years)
    values |= {"sex": sex if sex in SEXES else "", "age_years": None if years is None else min(years, OLDEST_YEARS)}
    INSERT.execute(tx, {"result_id": result_id, "model_digest": digest, "at": now, **values})


def _word(text: str) -> str:
    """A text of a header as far as it can be shown."""
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_WORD].strip()


def age_at(born: str, scanned: str) -> int | None:
    """Whole years between two DICOM dates; None if one of them is not a date, or they are the wrong way round."""
    try:
        days = (date.fromisoformat(scanned) - date.fromisoformat(born)).days
    except ValueError:
        return None
    return int(days / DAYS_OF_A_YEAR) if days >= 0 else None


def _page(*order: Any, later: bool) -> Select[Any]:
    """Facts of one model past a place in time, with the reason if there is no finding, and how it was served: how long
    it took and was queued, whether anything was tried again, and whether a destination did not take it."""
    place = tuple_(watch_facts.c.at, watch_facts.c.result_id)
    mark = tuple_(bindparam("at"), bindparam("result"))
    facts = [column for column in watch_facts.c if column.name != "model_digest"]
    whole = watch_facts.join(results, results.c.id == watch_facts.c.result_id).join(jobs, jobs.c.id == results.c.job_id)
    served = [
        (jobs.c.started_at - jobs.c.queued_at).label("queue_s"),
        or_(jobs.c.attempts > 1, _any_delivery(deliveries.c.attempts > 1)).label("retried"),
        _any_delivery(deliveries.c.state == DeliveryState.FAILED).label("undelivered"),
    ]
    return (
        select(*facts, results.c.reason_code, results.c.superseded_at, turnarounds.c.to_delivery_s, *served)
        .select_from(whole.outerjoin(turnarounds, turnarounds.c.result_id == watch_facts.c.result_id))
        .where(watch_facts.c.model_digest == bindparam("model"), place > mark if later else place < mark)
        .order_by(*order)
        .limit(PAGE)
    )


def _any_delivery(such: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a delivery of the result is such a one. It is not a condition of the query: SQLite would look for all of
    that state."""
    found = select(func.max(case((such, 1), else_=0))).where(deliveries.c.result_id == watch_facts.c.result_id)
    return func.coalesce(found.correlate(watch_facts).scalar_subquery(), 0) > 0


_LATEST = _page(watch_facts.c.at.desc(), watch_facts.c.result_id.desc(), later=False)
_FIRST = _page(watch_facts.c.at, watch_facts.c.result_id, later=True)


def latest(tx: Connection, model_digest: str) -> Iterator[RowMapping]:
    """The facts of a model's results, the latest first, a page at a time: stop when there are enough.

    A result that was replaced has `superseded_at`. It is the caller who skips those, and bounds how many are read.
    """
    return _paged(tx, _LATEST, {"model": model_digest, "at": END[0], "result": END[1]})


def first(tx: Connection, model_digest: str, since: float = 0.0) -> Iterator[RowMapping]:
    """The same from a moment on, the first first."""
    return _paged(tx, _FIRST, {"model": model_digest, "at": since, "result": 0})


def _paged(tx: Connection, query: Select[Any], place: Mapping[str, Any]) -> Iterator[RowMapping]:
    while rows := tx.execute(query, place).mappings().all():
        yield from rows
        place = {**place, "at": rows[-1]["at"], "result": rows[-1]["result_id"]}
