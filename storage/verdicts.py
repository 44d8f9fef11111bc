"""What readers say about results. A verdict never changes a result or a report.

The latest verdict of a reader on a result counts; former ones stay as history. The audit trail says who gave which
verdict and seals its text by a digest. It does not hold the text, because the trail can never be changed and a reader
may have named a patient in it.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, select, update

from storage import audit
from storage.coded import positive_column
from storage.errors import NotFound, UnusableVerdict
from storage.first_finding import with_first_finding
from storage.models import codes, patients, results, series, studies, verdicts
from storage.moves import insert_row

LONGEST_TEXT = 4000


class Verdict(StrEnum):
    """What a reader says about a result."""

    AGREES = "AGREES"
    DISAGREES = "DISAGREES"
    CANNOT_SAY = "CANNOT_SAY"


class Opinion(StrEnum):
    """What a reader says about the scan, whatever the model found."""

    POSITIVE = "POSITIVE"
    NEGATIVE = "NEGATIVE"


@dataclass(frozen=True)
class ReadersVerdict:
    """One verdict. given_at: Unix seconds. replaced_at: when the same reader gave another one; None if it counts."""

    result_id: int
    reader: str
    verdict: Verdict
    own_opinion: Opinion | None
    text: str
    given_at: float
    replaced_at: float | None


@dataclass(frozen=True)
class LabelledResult:
    """A verdict that counts, with the result and the series that it is about.

    patient_pk: number of the patient's row. positive: what the model said of its first finding; None if it did not say.
    shadow: the result is of a model that runs beside the reporting one.
    manufacturer, sex, birth_date, study_date: of the scan, as its headers say.
    """

    given: ReadersVerdict
    series_instance_uid: str
    patient_pk: int
    model: str
    model_digest: str
    outcome: str
    positive: bool | None
    shadow: bool
    manufacturer: str | None
    sex: str | None
    birth_date: str | None
    study_date: str | None

    @property
    def label(self) -> bool | None:
        """Whether the reader calls the scan positive; None if the verdict does not say."""
        return label_of(self.given.verdict, self.given.own_opinion, self.positive)


def label_of(verdict: str, own_opinion: str | None, positive: bool | None) -> bool | None:
    """Whether a reader calls a scan positive: the own opinion, else what the verdict makes of the model's finding."""
    if own_opinion is not None:
        return own_opinion == Opinion.POSITIVE
    if positive is None or verdict == Verdict.CANNOT_SAY:
        return None
    return positive is (verdict == Verdict.AGREES)


def record_verdict(
    tx: Connection,
    result_id: int,
    reader: str,
    verdict: Verdict | str,
    own_opinion: Opinion | str | None,
    text: str,
    now: float,
) -> int:
    """Keep a reader's verdict on a result, with its audit row. It replaces this reader's former one. Returns its id.

    reader: the user's name. own_opinion: None or "" if the reader gives none.
    Raises NotFound; UnusableVerdict if it contradicts itself or its text is too long. Nothing else is changed.
    """
    verdict, opinion = _known(verdict, own_opinion)
    text = text.strip()
    about = _about(tx, result_id)
    _refuse_contradiction(verdict, opinion, about["positive"])
    if len(text) > LONGEST_TEXT:
        raise UnusableVerdict(f"the text has {len(text)} characters; at most {LONGEST_TEXT} are kept")
    if not reader:
        raise UnusableVerdict("a verdict needs its reader")
    of_reader = (verdicts.c.result_id == result_id) & (verdicts.c.reader == reader)
    tx.execute(update(verdicts).where(of_reader, verdicts.c.replaced_at.is_(None)).values(replaced_at=now))
    values = {
        "result_id": result_id,
        "reader": reader,
        "verdict": str(verdict),
        "own_opinion": None if opinion is None else str(opinion),
        "text": text,
        "given_at": now,
    }
    verdict_id = insert_row(tx, verdicts, values)
    subject = {name: about[name] for name in ("patient_id", "study_uid", "series_uid", "job_id")}
    detail: dict[str, object] = {"reader": reader, "verdict_id": verdict_id}
    if opinion is not None:
        detail["own_opinion"] = str(opinion)
    if text:
        detail["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    audit.append(
        tx, now, "verdict.given", audit.Subject(**subject, result_id=result_id), outcome=verdict, detail=detail
    )
    return verdict_id


def _known(verdict: str, own_opinion: str | None) -> tuple[Verdict, Opinion | None]:
    try:
        return Verdict(verdict), Opinion(own_opinion) if own_opinion else None
    except ValueError:
        raise UnusableVerdict("a verdict is AGREES, DISAGREES or CANNOT_SAY; an opinion POSITIVE or NEGATIVE") from None


def _refuse_contradiction(verdict: Verdict, opinion: Opinion | None, positive: bool | None) -> None:
    if opinion is None or positive is None or verdict is Verdict.CANNOT_SAY:
        return
    if (positive is (opinion is Opinion.POSITIVE)) is not (verdict is Verdict.AGREES):
        said = "positive" if positive else "negative"
        raise UnusableVerdict(f"the model said {said}: the verdict and the reader's own opinion contradict each other")


def _about(tx: Connection, result_id: int) -> dict[str, Any]:
    query = with_first_finding(
        select(
            patients.c.patient_id,
            studies.c.study_instance_uid.label("study_uid"),
            series.c.series_instance_uid.label("series_uid"),
            results.c.job_id,
            positive_column(codes).label("positive"),
        ),
        results.join(series, series.c.id == results.c.series_pk).join(studies).join(patients),
    )
    # Locked, so that two verdicts of one reader at the same time come one after the other.
    row = tx.execute(query.where(results.c.id == result_id).with_for_update(of=results)).mappings().first()
    if row is None:
        raise NotFound(f"no result {result_id}")
    return dict(row)


def verdicts_on(tx: Connection, result_id: int, *, history: bool = False) -> list[ReadersVerdict]:
    """The verdicts on a result that count, the oldest first; with `history`, also those that were replaced."""
    query = select(*_COLUMNS).where(verdicts.c.result_id == result_id)
    if not history:
        query = query.where(verdicts.c.replaced_at.is_(None))
    return [_verdict(row._mapping) for row in tx.execute(query.order_by(verdicts.c.id))]


def labelled_results(tx: Connection, *, reader: str | None = None) -> list[LabelledResult]:
    """All verdicts that count, in the order in which they were given; of one reader if given; none on a canary."""
    query = _labelled().where(verdicts.c.replaced_at.is_(None), series.c.canary.is_(False))
    if reader is not None:
        query = query.where(verdicts.c.reader == reader)
    rows = tx.execute(query.order_by(verdicts.c.id)).mappings()
    names = set(LabelledResult.__dataclass_fields__) - {"given", "model"}
    return [
        LabelledResult(_verdict(row), model=f"{row['model_name']} {row['model_version']}", **{n: row[n] for n in names})
        for row in rows
    ]


def _labelled() -> Select[Any]:
    return with_first_finding(
        select(
            *_COLUMNS,
            series.c.series_instance_uid,
            studies.c.patient_pk,
            studies.c.study_date,
            series.c.manufacturer,
            patients.c.sex,
            patients.c.birth_date,
            results.c.model_name,
            results.c.model_version,
            results.c.model_digest,
            results.c.outcome,
            results.c.shadow,
            positive_column(codes).label("positive"),
        ),
        verdicts.join(results).join(series, series.c.id == results.c.series_pk).join(studies).join(patients),
    )


_COLUMNS = tuple(verdicts.c[name] for name in ReadersVerdict.__dataclass_fields__)


def _verdict(row: Any) -> ReadersVerdict:
    held = {name: row[name] for name in ReadersVerdict.__dataclass_fields__}
    opinion = held["own_opinion"]
    return ReadersVerdict(
        **held | {"verdict": Verdict(held["verdict"]), "own_opinion": Opinion(opinion) if opinion else None}
    )
