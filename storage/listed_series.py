"""The lines of the worklist as a person reads them: listings with their series, patient, job and result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, func, select

from config.reasons import ReasonCode
from storage import withdrawals
from storage.models import jobs, listing_kinds, listings, patients, results, series, studies
from storage.withdrawals import Withdrawal

AT_ONCE = 500


@dataclass(frozen=True)
class Line:
    """A series, and one model's result on it if there is one.

    standing, reason_code, finding, source, scanner, model: see `listings.Kind`. state: of the series.
    job_state: of its latest job. probability, threshold: 0 to 1. received_at, last_instance_at, created_at: Unix
    seconds; the last is when the result was made. refusal_text: why the series is only kept. withdrawal: who rejected
    its images, if its reason is that.
    """

    listing: int
    series_pk: int
    received_at: float
    standing: str
    reason_code: str
    finding: str
    source: str
    scanner: str
    model: str
    probability: float | None
    threshold: float | None
    result_id: int | None
    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    study_date: str
    accession_number: str
    study_description: str
    description: str
    modality: str
    instance_count: int
    last_instance_at: float
    state: str
    refusal_text: str | None
    reason_text: str | None
    created_at: float | None
    job_state: str | None
    failure_reason: str | None
    withdrawal: Withdrawal | None = None


def lines_of(tx: Connection, ids: Sequence[int]) -> list[Line]:
    """The lines of listings, in the order of their numbers `ids`."""
    found: dict[int, Line] = {}
    for start in range(0, len(ids), AT_ONCE):
        rows = tx.execute(_QUERY.where(listings.c.id.in_(ids[start : start + AT_ONCE]))).mappings()
        found |= {row["listing"]: Line(**row) for row in rows}
    withdrawn = [line for line in found.values() if line.reason_code == ReasonCode.WITHDRAWN]
    by_series = withdrawals.of_series(tx, [line.series_pk for line in withdrawn]) if withdrawn else {}
    found |= {line.listing: replace(line, withdrawal=by_series.get(line.series_pk)) for line in withdrawn}
    return [found[one] for one in ids if one in found]


_LATEST = (
    select(func.max(jobs.c.id))
    .where(jobs.c.series_pk == listings.c.series_pk, jobs.c.shadow.is_(False))
    .correlate(listings)
    .scalar_subquery()
)
_QUERY = (
    select(
        listings.c.id.label("listing"),
        *(listings.c[name] for name in ("series_pk", "received_at", "probability", "result_id")),
        *(listing_kinds.c[name] for name in ("standing", "reason_code", "finding", "source", "scanner", "model")),
        *(patients.c[name] for name in ("patient_id", "birth_date", "sex")),
        patients.c.name.label("patient_name"),
        *(studies.c[name] for name in ("study_date", "accession_number")),
        studies.c.description.label("study_description"),
        *(series.c[name] for name in ("description", "modality", "instance_count", "last_instance_at", "state")),
        series.c.refusal_text,
        *(results.c[name] for name in ("threshold", "reason_text", "created_at")),
        jobs.c.state.label("job_state"),
        jobs.c.failure_reason,
    )
    .select_from(
        listings.join(listing_kinds, listing_kinds.c.id == listings.c.kind)
        .join(series, series.c.id == listings.c.series_pk)
        .join(studies, studies.c.id == series.c.study_pk)
        .join(patients, patients.c.id == studies.c.patient_pk)
        .outerjoin(results, results.c.id == listings.c.result_id)
    )
    .outerjoin(jobs, jobs.c.id == func.coalesce(listings.c.job_id, _LATEST))
)
