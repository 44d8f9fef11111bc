"""What a job found, and the DICOM objects that say so."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from sqlalchemy import Connection, Select, exists, func, insert, or_, select, update

from config.coding import VOLUME
from storage import audit, listings, tallies
from storage.coded import Content, content_of, record_content, record_weights, weights_of
from storage.errors import NotFound
from storage.files import StoredFile
from storage.job_state import JobState
from storage.models import deliveries, jobs, patients, result_objects, results, series, studies
from storage.moves import insert_row
from storage.object_kinds import ObjectKind
from storage.replaces import ALL_BEFORE as ALL_BEFORE
from storage.replaces import Replaces as Replaces

# The columns that say what was found, by which model, on which input.
SEALED = (
    "outcome",
    "reason_code",
    "reason_text",
    "threshold",
    "pixel_digest",
    "model_name",
    "model_version",
    "model_digest",
    "device",
    "precision",
    "versions",
    "timings",
    "checks",
)


EVIDENCE = "EVIDENCE"
"""Code of the entry in `checks` that names the slice which shows best why a series was not analysed."""
FIRST_SEAL, SEAL = 1, 2
# What results with the first seal had columns for, in the order in which they were sealed.
SEALED_AS_COLUMNS = (
    *("outcome", "reason_code", "reason_text", "probability", "threshold", "positive", "lung_volume_ml"),
    *("pixel_digest", "model_name", "model_version", "model_digest", "unet_sha256", "decovnet_sha256"),
    *("device", "precision", "versions", "timings", "checks"),
)


class ResultOutcome(StrEnum):
    """ANALYSED has findings or measurements; NOT_ANALYSED has a reason instead."""

    ANALYSED = "ANALYSED"
    NOT_ANALYSED = "NOT_ANALYSED"


@dataclass(frozen=True)
class NewResult:
    """What the worker found.

    content: findings and measurements; none if not analysed.
    weights: SHA-256 of the model's weight files by role.
    threshold: of the model's card, 0 to 1; None if it has none.
    reason_code, reason_text: why it was not analysed; None if it was.
    pixel_digest: SHA-256 hex of the pixels and geometry that the model saw, None if none were loaded.
    versions, timings (seconds by stage), checks: JSON types only.
    """

    outcome: str
    model_name: str
    model_version: str
    model_digest: str
    content: Content = field(default_factory=Content)
    weights: Mapping[str, str] = field(default_factory=dict)
    reason_code: str | None = None
    reason_text: str | None = None
    threshold: float | None = None
    pixel_digest: str | None = None
    device: str = ""
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    checks: Sequence[Mapping[str, object]] | Mapping[str, object] = ()


@dataclass(frozen=True)
class NewObject:
    """One DICOM object of a result, already durable."""

    kind: ObjectKind
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    file: StoredFile


@dataclass(frozen=True)
class StoredObject:
    """One DICOM object of a result, as stored. size: bytes."""

    kind: ObjectKind
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PreviousResult:
    """The result that a new report of the same series replaces. `report` is what its Predecessor Documents name."""

    result_id: int
    revision: int
    outcome: str
    created_at: float
    report: StoredObject
    study_instance_uid: str


@dataclass(frozen=True)
class ResultInput:
    """What a result was made from, for its replay.

    instances_digest: as in `series.instances_digest`.  last_instance_at: Unix seconds; what came later was not seen.
    refusal_code: set if the job was to be refused without any analysis.
    """

    job_id: int
    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    instances_digest: str
    last_instance_at: float
    refusal_code: str | None


def record(
    tx: Connection,
    job_id: int,
    now: float,
    result: NewResult,
    objects: Sequence[NewObject],
    *,
    stale: bool,
    replaces: Replaces = ALL_BEFORE,
) -> int:
    """Write a result and its objects; earlier results of the series of the same kind are superseded. Returns its id.

    stale: the series was reopened while the job ran; the result is kept for the audit and superseded at birth.
    """
    columns = (jobs.c[name] for name in ("series_pk", "revision", "shadow", "batch_id"))
    of_job = select(*columns, series.c.canary).select_from(jobs.join(series)).where(jobs.c.id == job_id)
    job = tx.execute(of_job).one()
    if not stale and job.batch_id is None:
        supersede(tx, job.series_pk, now, shadow=job.shadow, replaces=ALL_BEFORE if job.shadow else replaces)
    values = {
        "job_id": job_id,
        "series_pk": job.series_pk,
        "revision": job.revision,
        "created_at": now,
        "superseded_at": now if stale else None,
        "shadow": job.shadow,
        "batch_id": job.batch_id,
        **_columns(result),
    }
    result_id = insert_row(tx, results, values)
    record_content(tx, result_id, result.content)
    record_weights(tx, result.model_digest, result.weights)
    part = tallies.CANARY if job.canary else tallies.part_of("results", values)
    tallies.add(tx, "results", result.outcome, 1, part=part)
    if not stale and not job.shadow:
        tx.execute(update(series).where(series.c.id == job.series_pk).values(has_result=True))
    rows = [
        {
            "result_id": result_id,
            "kind": str(item.kind),
            "sop_instance_uid": item.sop_instance_uid,
            "sop_class_uid": item.sop_class_uid,
            "series_instance_uid": item.series_instance_uid,
            "path": item.file.path,
            "sha256": item.file.sha256,
            "size": item.file.size,
        }
        for item in objects
    ]
    if rows:
        tx.execute(insert(result_objects), rows)
    flags = {"superseded": stale, "shadow": job.shadow, "batch": job.batch_id}
    _audit(tx, result_id, job_id, now, result, {name: value for name, value in flags.items() if value})
    return result_id


def _columns(result: NewResult) -> dict[str, object]:
    return {
        "outcome": str(result.outcome),
        "reason_code": result.reason_code,
        "reason_text": result.reason_text,
        "threshold": result.threshold,
        "pixel_digest": result.pixel_digest,
        "model_name": result.model_name,
        "model_version": result.model_version,
        "model_digest": result.model_digest,
        "device": result.device,
        "precision": result.precision,
        "versions": json.dumps(dict(result.versions), sort_keys=True),
        "timings": json.dumps(dict(result.timings), sort_keys=True),
        "checks": json.dumps(result.checks, sort_keys=True),
        "seal": SEAL,
    }


def _audit(
    tx: Connection, result_id: int, job_id: int, now: float, result: NewResult, flags: Mapping[str, object]
) -> None:
    """The inference as a row. What it found has columns of its own; this is the digest that seals them."""
    named = tx.execute(
        select(series.c.series_instance_uid, studies.c.study_instance_uid, patients.c.patient_id)
        .select_from(jobs.join(series).join(studies).join(patients))
        .where(jobs.c.id == job_id)
    ).one()
    detail: dict[str, object] = {
        "model": f"{result.model_name} {result.model_version}",
        "content_sha256": content_sha256(tx, result_id),
    }
    if result.reason_code is not None:
        detail["reason"] = result.reason_code
    audit.append(
        tx,
        now,
        "result.recorded",
        audit.Subject(
            series_uid=named.series_instance_uid,
            study_uid=named.study_instance_uid,
            patient_id=named.patient_id,
            job_id=job_id,
            result_id=result_id,
        ),
        outcome=str(result.outcome),
        detail={**detail, **flags},
    )


def content_sha256(tx: Connection, result_id: int) -> str:
    """SHA-256 hex over what a result says and over its objects, as the index holds them now.

    The audit row of the result holds it, so that a result which was altered in the index shows. Raises NotFound.
    """
    row = tx.execute(select(*(results.c[name] for name in (*SEALED, "seal"))).where(results.c.id == result_id)).first()
    if row is None:
        raise NotFound(f"no result {result_id}")
    sealed = {name: row._mapping[name] for name in SEALED}
    content, weights = content_of(tx, result_id), weights_of(tx, row.model_digest)
    said = _as_columns(sealed, content, weights) if row.seal == FIRST_SEAL else _by_code(sealed, content, weights)
    objects = [[item.sop_instance_uid, item.sha256] for item in objects_of(tx, result_id)]
    return hashlib.sha256(json.dumps([said, objects], ensure_ascii=False).encode()).hexdigest()


def _by_code(sealed: Mapping[str, object], content: Content, weights: Mapping[str, str]) -> list[object]:
    """What is sealed of a result."""
    return [list(sealed.values()), asdict(content), sorted(weights.items())]


def _as_columns(sealed: Mapping[str, object], content: Content, weights: Mapping[str, str]) -> list[object]:
    """What was sealed of a result while what it says was columns: the values that they had, in their order."""
    finding = content.findings[0] if content.findings else None
    former = {
        "probability": finding.certainty if finding else None,
        "positive": finding.positive if finding else None,
        "lung_volume_ml": content.value_of(VOLUME),
        "unet_sha256": weights.get("unet", ""),
        "decovnet_sha256": weights.get("decovnet", ""),
    }
    return [{**sealed, **former}[name] for name in SEALED_AS_COLUMNS]


def supersede(
    tx: Connection, series_pk: int, now: float, *, shadow: bool | None = None, replaces: Replaces = ALL_BEFORE
) -> None:
    """Mark the results of a series as no longer current; only reported or only shadow ones if `shadow` says so.

    Those of batches stay as they are: they were never current.
    """
    current = update(results).where(results.c.series_pk == series_pk, results.c.superseded_at.is_(None))
    current = current.where(results.c.batch_id.is_(None))
    current = current.where(replaces.condition())
    if shadow is not None:
        current = current.where(results.c.shadow.is_(shadow))
    tx.execute(current.values(superseded_at=now))
    if shadow is not True:
        tx.execute(update(series).where(series.c.id == series_pk).values(has_result=False))
        listings.touch(tx, series_pk)


def objects_of(tx: Connection, result_id: int) -> tuple[StoredObject, ...]:
    """The objects of a result, in the order in which they were recorded."""
    columns = [result_objects.c[name] for name in StoredObject.__dataclass_fields__]
    rows = tx.execute(select(*columns).where(result_objects.c.result_id == result_id).order_by(result_objects.c.id))
    return tuple(StoredObject(**{**row, "kind": ObjectKind(row["kind"])}) for row in rows.mappings())


def object_by_uid(tx: Connection, sop_instance_uid: str) -> tuple[int, StoredObject] | None:
    """The result that has this object, and the object; None if there is none."""
    of_uid = result_objects.c.sop_instance_uid == sop_instance_uid
    result_id = tx.scalar(select(result_objects.c.result_id).where(of_uid))
    if result_id is None:
        return None
    return result_id, next(one for one in objects_of(tx, result_id) if one.sop_instance_uid == sop_instance_uid)


def previous_result(tx: Connection, series_pk: int, replaces: Replaces = ALL_BEFORE) -> PreviousResult | None:
    """The latest result of a series that a destination may hold, for Predecessor Documents; None if there is none.

    If every delivery of a result was superseded before its first attempt, the result never left the node. To name it
    would point at nothing, and would leave the report before it standing.
    """
    left_the_node = or_(
        # The fence and not the attempts: an operator's retry counts those from 0 again.
        exists().where(deliveries.c.result_id == results.c.id, deliveries.c.fence > 0),
        ~exists().where(deliveries.c.result_id == results.c.id) & results.c.id.in_(_finished_results(series_pk)),
    )
    found = tx.execute(
        select(results.c.id, results.c.revision, results.c.outcome, results.c.created_at, studies.c.study_instance_uid)
        .select_from(results.join(series).join(studies))
        .where(results.c.series_pk == series_pk, results.c.shadow.is_(False), left_the_node, replaces.condition())
        .where(exists().where(result_objects.c.result_id == results.c.id, result_objects.c.kind == ObjectKind.REPORT))
        .order_by(results.c.id.desc())
        .limit(1)
    ).first()
    if found is None:
        return None
    report = next(item for item in objects_of(tx, found.id) if item.kind == ObjectKind.REPORT)
    return PreviousResult(found.id, found.revision, found.outcome, found.created_at, report, found.study_instance_uid)


def _finished_results(series_pk: int) -> Select[tuple[int]]:
    """Results of jobs that ended REPORTED: one that was superseded while it ran is not among them."""
    return (
        select(results.c.id)
        .select_from(results.join(jobs, jobs.c.id == results.c.job_id))
        .where(results.c.series_pk == series_pk, jobs.c.state == JobState.REPORTED.value)
    )


def of_job(tx: Connection, job_id: int) -> int | None:
    """The id of a job's result; None if it has none."""
    found: int | None = tx.scalar(select(results.c.id).where(results.c.job_id == job_id))
    return found


def get_result(tx: Connection, result_id: int) -> dict[str, object]:
    """All columns of a result by name, its JSON columns decoded, and its `content`. Raises NotFound."""
    row = tx.execute(select(results).where(results.c.id == result_id)).mappings().first()
    if row is None:
        raise NotFound(f"no result {result_id}")
    decoded = {name: json.loads(row[name]) for name in ("versions", "timings", "checks")}
    return {**row, **decoded, "content": content_of(tx, result_id)}


def all_current_of(tx: Connection, series_pk: int) -> list[int]:
    """The ids of a series' current reported results, one for each model, the oldest first."""
    current = (results.c.series_pk == series_pk) & results.c.superseded_at.is_(None) & results.c.shadow.is_(False)
    return list(tx.scalars(select(results.c.id).where(current).order_by(results.c.id)))


def latest_of_series(tx: Connection, series_uid: str) -> int:
    """The id of a series' latest reported result, current or not. Raises NotFound."""
    found: int | None = tx.scalar(
        select(func.max(results.c.id))
        .select_from(results.join(series))
        .where(series.c.series_instance_uid == series_uid, results.c.shadow.is_(False))
    )
    if found is None:
        raise NotFound("no such series, or it has no result yet")
    return found


def input_of(tx: Connection, result_id: int) -> ResultInput:
    """What a result was made from. Raises NotFound."""
    row = tx.execute(
        select(
            results.c.job_id,
            results.c.series_pk,
            series.c.series_instance_uid,
            studies.c.study_instance_uid,
            patients.c.patient_id,
            jobs.c.instances_digest,
            jobs.c.last_instance_at,
            jobs.c.refusal_code,
        )
        .select_from(results.join(jobs, jobs.c.id == results.c.job_id).join(series, series.c.id == results.c.series_pk))
        .join(studies, studies.c.id == series.c.study_pk)
        .join(patients, patients.c.id == studies.c.patient_pk)
        .where(results.c.id == result_id)
    ).first()
    if row is None:
        raise NotFound(f"no result {result_id}")
    return ResultInput(**row._mapping)
