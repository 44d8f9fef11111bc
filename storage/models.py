"""The tables and their constraints: the invariants that hold whatever the code above does.

Times are float Unix seconds, UTC. Text columns hold what the DICOM header says, clipped. States are text with
a CHECK, so that a person reading the file sees words. Whatever waits has both `due_at` and `set_at`: `due_at` is when
the wait ends, `set_at` is when that was decided. They reveal a clock that jumped back (see clock.py).

Many indexes hold only the rows that still need something: they stay small however long the history is. A query uses
such an index only if the index's condition stands in the query as it stands here (see `in_state`).
"""

from typing import Any, ClassVar, cast

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    func,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


# 64 bits: a region writes 2**31 audit rows in months. SQLite's INTEGER has 64 bits, and it numbers rows by itself.
WIDE = BigInteger().with_variant(Integer, "sqlite")


# Compared byte by byte on both databases, so that a beginning is a range of an index.
BYTEWISE = String().with_variant(String(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double(), int: WIDE}


def _where(name: str, *columns: Any, condition: str, unique: bool = False) -> Index:
    """An index of those rows for which a condition holds."""
    return Index(name, *columns, unique=unique, sqlite_where=text(condition), postgresql_where=text(condition))


class Property(Base):
    """One fact about the database itself, such as the digest of the views that it holds."""

    __tablename__ = "properties"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Patient(Base):
    """A patient as the first instance named them. `key` is the Patient ID, or the study's UID if that is empty.

    name_key: the name as it is looked for (see names.py).
    """

    __tablename__ = "patients"
    __table_args__ = (_where("ix_patients_name_key", "name_key", condition="name_key <> ''"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    patient_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    birth_date: Mapped[str]
    sex: Mapped[str]
    first_seen_at: Mapped[float]
    name_key: Mapped[str] = mapped_column(BYTEWISE, server_default=text("''"))


class Study(Base):
    """A study as its first instance described it."""

    __tablename__ = "studies"
    __table_args__ = (_where("ix_studies_accession_number", "accession_number", condition="accession_number <> ''"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_pk: Mapped[int] = mapped_column(ForeignKey("patients.id"), index=True)
    study_instance_uid: Mapped[str] = mapped_column(unique=True)
    study_date: Mapped[str]
    study_time: Mapped[str]
    accession_number: Mapped[str]
    description: Mapped[str]
    first_seen_at: Mapped[float]


class Series(Base):
    """A series, when it closes, and how that was decided.

    patient_key: `patients.key` of its first instance; an instance of another patient is set aside.
    calling_ae, called_ae: of its first instance; the rules of that source apply to the series.
    revision: 1 at first, and one more each time a late instance reopens it.
    instances_digest: SHA-256 over the sorted "SOP Instance UID, file SHA-256" lines at its last close.
    completeness, expected_count: how it was found complete and the count asked for, at its last close.
    refusal_code, refusal_text: why it was closed without being analysed, if it was.
    selection: its part in the choice of the study's best series (see selection.py); null if every one is analysed.
    has_result: it has a reported result that no later one replaces.
    emptied_at: when retention found none of its images left to delete; null while it may have some.
    imported: read from a folder or fetched from a PACS for a batch; nobody sent it here (see imported.py).
    canary: the node itself made and sent it (see canaries.py).
    """

    __tablename__ = "series"
    __table_args__ = (
        CheckConstraint("state IN ('OPEN', 'CLOSED')", name="state"),
        CheckConstraint("revision >= 1", name="revision"),
        CheckConstraint(
            "selection IN ('WAITING', 'CHOSEN', 'ANALYSED', 'PASSED_OVER', 'UNSUITABLE')", name="selection"
        ),
        _where("ix_series_open_due_at", "due_at", condition="state = 'OPEN'"),
        _where("ix_series_state_last_instance_at", "state", "last_instance_at", condition="NOT imported"),
        _where("ix_series_selection", "selection", condition="selection IS NOT NULL"),
        _where("ix_series_without_result", "id", condition="NOT has_result AND NOT imported"),
        _where("ix_series_with_images", "closed_at", condition="closed_at IS NOT NULL AND emptied_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_pk: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(unique=True)
    patient_key: Mapped[str]
    modality: Mapped[str]
    number: Mapped[str]
    description: Mapped[str]
    body_part: Mapped[str]
    manufacturer: Mapped[str]
    station_name: Mapped[str]
    calling_ae: Mapped[str]
    called_ae: Mapped[str]
    state: Mapped[str]
    revision: Mapped[int]
    instance_count: Mapped[int]
    first_instance_at: Mapped[float]
    last_instance_at: Mapped[float]
    quiet_s: Mapped[float]
    set_at: Mapped[float]
    due_at: Mapped[float]
    closed_at: Mapped[float | None]
    instances_digest: Mapped[str | None]
    completeness: Mapped[str | None]
    expected_count: Mapped[int | None]
    refusal_code: Mapped[str | None]
    refusal_text: Mapped[str | None]
    selection: Mapped[str | None]
    has_result: Mapped[bool] = mapped_column(server_default=false())
    emptied_at: Mapped[float | None]
    imported: Mapped[bool] = mapped_column(server_default=false())
    canary: Mapped[bool] = mapped_column(server_default=false())


class Instance(Base):
    """One stored instance. `gone_at` and `gone_reason` say when and why its file is no longer there to read."""

    __tablename__ = "instances"
    __table_args__ = (
        CheckConstraint("gone_reason IN ('retention', 'missing', 'corrupt')", name="gone_reason"),
        CheckConstraint("(gone_at IS NULL) = (gone_reason IS NULL)", name="gone"),
        _where("ix_instances_lost", "gone_reason", "gone_at", condition="gone_reason IN ('missing', 'corrupt')"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_pk: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    instance_number: Mapped[str]
    image_type: Mapped[str]
    path: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    size: Mapped[int]
    calling_ae: Mapped[str]
    called_ae: Mapped[str]
    address: Mapped[str]
    received_at: Mapped[float]
    gone_at: Mapped[float | None]
    gone_reason: Mapped[str | None]


class Conflict(Base):
    """An instance set aside: its UID was already taken, or its series belongs elsewhere.

    verdict: null until it has been compared with the instance that is held. SAME: the same image in another encoding;
        its file is deleted. CONTRADICTS: its file is kept for a person to look at.
    patient_key: as in `Series`, of this instance; null if it was set aside before schema 28.
    """

    __tablename__ = "conflicts"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "series_instance_uid", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str]
    series_instance_uid: Mapped[str] = mapped_column(index=True)
    study_instance_uid: Mapped[str]
    reason: Mapped[str]
    path: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    size: Mapped[int]
    calling_ae: Mapped[str]
    called_ae: Mapped[str]
    address: Mapped[str]
    received_at: Mapped[float]
    times_seen: Mapped[int]
    verdict: Mapped[str | None] = mapped_column(index=True)
    patient_key: Mapped[str | None]


class Rejection(Base):
    """An image that was rejected after it had been stored, whether the node holds it or not.

    sop_instance_uid: empty for all of the series. why: without patient data. note_uid: of the object that said so.
    standing: STANDS, or OVERRULED by a person who had the series analysed all the same.
    """

    __tablename__ = "rejections"
    __table_args__ = (
        UniqueConstraint("series_instance_uid", "sop_instance_uid"),
        CheckConstraint("standing IN ('STANDS', 'OVERRULED')", name="standing"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    why: Mapped[str]
    note_uid: Mapped[str]
    standing: Mapped[str]
    noted_at: Mapped[float]


class RefusedInstance(Base):
    """An instance that was offered and not acknowledged, once for each sender and reason.

    series_instance_uid, sop_instance_uid, study_instance_uid, patient_id: as far as they could be read, else empty.
    status: the DIMSE status as four hexadecimal digits, or "ABORT" if the association ended before an answer.
    standing: MISSING: the series is incomplete unless the instance came later. ACCEPTED: a person decided that the
        series may do without it. UNWANTED: a rule of the site refuses it.
    """

    __tablename__ = "refused_instances"
    __table_args__ = (
        UniqueConstraint(
            "series_instance_uid",
            "sop_instance_uid",
            "reason",
            "calling_ae",
            name="uq_refused_instances_series_sop_reason_ae",  # PostgreSQL takes 63 characters
        ),
        CheckConstraint("standing IN ('MISSING', 'ACCEPTED', 'UNWANTED')", name="standing"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    study_instance_uid: Mapped[str]
    patient_id: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    calling_ae: Mapped[str]
    address: Mapped[str]
    standing: Mapped[str]
    first_at: Mapped[float]
    last_at: Mapped[float]
    times: Mapped[int]


class Job(Base):
    """One analysis of one input by one model: never queued twice.

    shadow: the model runs beside the one that reports; its result is kept and never sent.
    batch_id: the batch that it runs for; null for live work. Jobs of batches are shadow jobs, too.
    due_at: while QUEUED, not claimed before; while RUNNING, the end of the lease.
    interruptions: how often the whole node stopped while it ran; those attempts are not counted.
    fence: grows with each claim; only its current holder may move the job.
    priority: among those that wait, the highest is claimed first.
    refusal_code, refusal_text: the decision not to analyse, made before the worker; it only reports it.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint(
            "series_pk",
            "revision",
            "instances_digest",
            "model_digest",
            "shadow",
            name="uq_jobs_series_pk_revision_input_digest_model_digest_shadow",
        ),
        CheckConstraint("state IN ('QUEUED', 'RUNNING', 'REPORTED', 'FAILED', 'SUPERSEDED')", name="state"),
        CheckConstraint("attempts >= 0", name="attempts"),
        _where("ix_jobs_queued_at", "queued_at", condition="state = 'QUEUED' AND batch_id IS NULL"),
        _where("ix_jobs_running_due_at", "due_at", condition="state = 'RUNNING'"),
        _where("ix_jobs_failed", "finished_at", condition="state = 'FAILED' AND batch_id IS NULL"),
        _where(
            "ix_jobs_batch_queue",
            "batch_id",
            "due_at",
            "id",
            condition="state = 'QUEUED' AND batch_id IS NOT NULL",
        ),
        _where("ix_jobs_waiting_set_at", "set_at", condition="state IN ('QUEUED', 'RUNNING')"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_pk: Mapped[int] = mapped_column(ForeignKey("series.id"))
    revision: Mapped[int]
    instances_digest: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    model_digest: Mapped[str]
    shadow: Mapped[bool]
    state: Mapped[str]
    priority: Mapped[int]
    attempts: Mapped[int]
    interruptions: Mapped[int]
    fence: Mapped[int]
    worker: Mapped[str | None]
    set_at: Mapped[float]
    due_at: Mapped[float]
    instance_count: Mapped[int]
    last_instance_at: Mapped[float]
    refusal_code: Mapped[str | None]
    refusal_text: Mapped[str | None]
    failure_reason: Mapped[str | None]
    queued_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    batch_id: Mapped[int | None]


class Batch(Base):
    """One model on many series, apart from live work (see batches.py).

    source: "store", "folder" or "pacs". query: what was asked of it, as JSON.
    cursor: how far its creation has come; it goes on from there after a crash.
    labels, labels_sha256: the file that says what is true of the cases, and the digest of its bytes.
    cases, queued, done, without_result: counts of its cases, kept in the transactions that change them.
    """

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint("state IN ('CREATING', 'RUNNING', 'PAUSED', 'DONE', 'CANCELLED')", name="state"),
        _where("ix_batches_running", "id", condition="state = 'RUNNING'"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    source: Mapped[str]
    query: Mapped[str]
    cursor: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    model_digest: Mapped[str]
    labels: Mapped[str | None]
    labels_sha256: Mapped[str | None]
    cases: Mapped[int]
    queued: Mapped[int]
    done: Mapped[int]
    without_result: Mapped[int]
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class BatchCase(Base):
    """One series of a batch. DONE has a result; WITHOUT_RESULT has a reason instead.

    series_uid: Series Instance UID. place: where its images are, as JSON, if they are not in the index yet.
    label_line: the line of the labels that names it.
    due_at: not taken up before, Unix seconds. tries: how often it was taken up in vain.
    """

    __tablename__ = "batch_cases"
    __table_args__ = (
        UniqueConstraint("batch_id", "series_uid"),
        CheckConstraint("state IN ('WAITING', 'QUEUED', 'DONE', 'WITHOUT_RESULT')", name="state"),
        CheckConstraint("(state = 'DONE') = (result_id IS NOT NULL)", name="result"),
        CheckConstraint("(state = 'WITHOUT_RESULT') = (reason_code IS NOT NULL)", name="reason"),
        _where("ix_batch_cases_waiting", "batch_id", "due_at", "id", condition="state = 'WAITING'"),
        _where("ix_batch_cases_queued", "batch_id", "id", condition="state = 'QUEUED'"),
        _where("ix_batch_cases_series", "series_pk", condition="state = 'QUEUED'"),
        _where("ix_batch_cases_ended", "batch_id", "ended_at", condition="ended_at IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id"))
    state: Mapped[str]
    series_uid: Mapped[str]
    place: Mapped[str]
    label_line: Mapped[int | None]
    due_at: Mapped[float]
    tries: Mapped[int]
    series_pk: Mapped[int | None] = mapped_column(ForeignKey("series.id"))
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    result_id: Mapped[int | None] = mapped_column(ForeignKey("results.id"))
    reason_code: Mapped[str | None]
    reason_text: Mapped[str | None]
    ended_at: Mapped[float | None]


class Result(Base):
    """What one job found, and everything needed to say years later why it found that.

    shadow: of a model that runs beside the one that reports; it has no objects and no deliveries.
    batch_id: the batch that it was made for; null for live work.
    threshold: of the model's card, null if it has none.
    seal: which form of its content the audit row sealed, see `results.content_sha256`.
    """

    __tablename__ = "results"
    __table_args__ = (
        CheckConstraint("outcome IN ('ANALYSED', 'NOT_ANALYSED')", name="outcome"),
        CheckConstraint("(outcome = 'NOT_ANALYSED') = (reason_code IS NOT NULL)", name="reason"),
        _where(
            "ix_results_not_analysed",
            "reason_code",
            "created_at",
            condition="outcome = 'NOT_ANALYSED' AND NOT shadow",
        ),
        _where(
            "ix_results_standing",
            "created_at",
            "id",
            condition="superseded_at IS NULL AND NOT shadow AND batch_id IS NULL",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    series_pk: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    revision: Mapped[int]
    created_at: Mapped[float]
    superseded_at: Mapped[float | None]
    shadow: Mapped[bool]
    outcome: Mapped[str]
    reason_code: Mapped[str | None]
    reason_text: Mapped[str | None]
    threshold: Mapped[float | None]
    pixel_digest: Mapped[str | None]
    model_name: Mapped[str]
    model_version: Mapped[str]
    model_digest: Mapped[str] = mapped_column(index=True)
    device: Mapped[str]
    precision: Mapped[str]
    versions: Mapped[str]
    timings: Mapped[str]
    checks: Mapped[str]
    seal: Mapped[int]
    batch_id: Mapped[int | None]


class VerdictRow(Base):
    """What a reader says about a result. `text` may hold what identifies a patient.

    replaced_at: when the same reader gave another verdict on the result; null while this one counts.
    """

    __tablename__ = "verdicts"
    __table_args__ = (
        CheckConstraint("verdict IN ('AGREES', 'DISAGREES', 'CANNOT_SAY')", name="verdict"),
        CheckConstraint("own_opinion IN ('POSITIVE', 'NEGATIVE')", name="own_opinion"),
        _where("ix_verdicts_counting", "result_id", "reader", condition="replaced_at IS NULL", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    reader: Mapped[str]
    verdict: Mapped[str]
    own_opinion: Mapped[str | None]
    text: Mapped[str]
    given_at: Mapped[float]
    replaced_at: Mapped[float | None]


class ExaminationRow(Base):
    """A result that later ones of the same patient by the same model may be compared with.

    person: a digest of what identifies the patient (see examinations.py).  day: of the scan, "2026-11-23".
    scan: how it was made, as JSON.  earlier_id: the result that this one was compared with; null if none.
    said: what its report says of the change, as a JSON list of sentences.
    """

    __tablename__ = "examinations"
    __table_args__ = (Index("ix_examinations_person", "person", "model_name", "day", "result_id"),)

    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), primary_key=True, autoincrement=False)
    person: Mapped[str]
    model_name: Mapped[str]
    day: Mapped[str]
    scan: Mapped[str]
    earlier_id: Mapped[int | None] = mapped_column(ForeignKey("results.id"))
    said: Mapped[str]


class CodeRow(Base):
    """A coded concept that findings and measurements refer to: value, coding scheme and meaning."""

    __tablename__ = "codes"
    __table_args__ = (UniqueConstraint("value", "scheme", "meaning"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[str]
    scheme: Mapped[str]
    meaning: Mapped[str]


class FindingRow(Base):
    """What a result says about one disease or sign. certainty, threshold: 0 to 1, null if the model has none."""

    __tablename__ = "findings"
    __table_args__ = (CheckConstraint("certainty IS NULL OR (certainty >= 0 AND certainty <= 1)", name="certainty"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    title: Mapped[str]
    concept_id: Mapped[int] = mapped_column(ForeignKey("codes.id"))
    interpretation_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    category_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    site_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    laterality_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    certainty: Mapped[float | None]
    threshold: Mapped[float | None]
    segment: Mapped[str | None]


class MeasurementRow(Base):
    """One number of a result. segment: title of the segment that it was measured on.

    qualifiers: what it depends on, as JSON: [[value, scheme, meaning], number, unit] each; null if nothing.
    """

    __tablename__ = "measurements"

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    value: Mapped[float]
    concept_id: Mapped[int] = mapped_column(ForeignKey("codes.id"))
    unit_id: Mapped[int] = mapped_column(ForeignKey("codes.id"))
    site_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    laterality_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    topography_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    derivation_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    method_id: Mapped[int | None] = mapped_column(ForeignKey("codes.id"))
    segment: Mapped[str | None]
    qualifiers: Mapped[str | None]


class ModelWeights(Base):
    """The weight files of a model by role. The model's digest changes with any of them."""

    __tablename__ = "model_weights"

    model_digest: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]


class ResultObject(Base):
    """One DICOM object of a result, byte for byte as every destination gets it."""

    __tablename__ = "result_objects"

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    kind: Mapped[str]
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    sop_class_uid: Mapped[str]
    series_instance_uid: Mapped[str]
    path: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    size: Mapped[int]


class Delivery(Base):
    """The sending of one result to one destination.

    due_at: while PENDING, the next attempt; while SENDING, the end of the lease; while SENT, when to ask
        (again) for storage commitment, or null if none is wanted.
    commitment_uid: Transaction UID of the storage commitment asked for last.
    commitment_attempts: how often the destination was asked whether it keeps it, since it was last sent.
    resends: how often it was sent again because the destination did not keep it.
    unconfirmed_at: when asking was given up without an answer.
    refusals: final failures that the destination answered with; after a number of them it is FAILED.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("result_id", "destination"),
        CheckConstraint(
            "state IN ('PENDING', 'SENDING', 'SENT', 'COMMITTED', 'FAILED', 'SUPERSEDED')",
            name="state",
        ),
        CheckConstraint("state NOT IN ('PENDING', 'SENDING') OR due_at IS NOT NULL", name="due"),
        Index("ix_deliveries_state_destination_due_at", "state", "destination", "due_at"),
        _where("ix_deliveries_waiting_set_at", "set_at", condition="due_at IS NOT NULL"),
        _where("ix_deliveries_unconfirmed_at", "unconfirmed_at", condition="unconfirmed_at IS NOT NULL"),
        _where("ix_deliveries_pending", "destination", "created_at", condition="state = 'PENDING'"),
        _where("ix_deliveries_failed", "set_at", condition="state = 'FAILED'"),
        _where(
            "ix_deliveries_error",
            "destination",
            "set_at",
            condition="error IS NOT NULL AND state IN ('PENDING', 'FAILED')",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"))
    destination: Mapped[str]
    state: Mapped[str]
    attempts: Mapped[int]
    fence: Mapped[int]
    set_at: Mapped[float]
    due_at: Mapped[float | None]
    created_at: Mapped[float]
    sent_at: Mapped[float | None]
    committed_at: Mapped[float | None]
    error: Mapped[str | None]
    warning: Mapped[str | None]
    object_status: Mapped[str | None]
    commitment_uid: Mapped[str | None] = mapped_column(unique=True)
    commitment_attempts: Mapped[int]
    refusals: Mapped[int]
    resends: Mapped[int] = mapped_column(server_default="0")
    unconfirmed_at: Mapped[float | None]


class MessageRow(Base):
    """What a delivery says to a destination that takes no DICOM objects; `content` names the patient.

    kind: of the destination that it was composed for.  key: by which the destination tells a repeated one.
    nonce: null if the content is not encrypted.  sha256: of the content, before it was encrypted.
    """

    __tablename__ = "messages"

    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), primary_key=True, autoincrement=False)
    kind: Mapped[str]
    key: Mapped[str]
    content_type: Mapped[str]
    content: Mapped[bytes]
    nonce: Mapped[bytes | None]
    sha256: Mapped[str]
    made_at: Mapped[float]


class Turnaround(Base):
    """How long one reported result took, from the last instance of its series.

    day_utc: the day on which the result was made, "2026-11-23". to_delivery_s: until the first destination had it.
    """

    __tablename__ = "turnarounds"
    __table_args__ = (
        Index("ix_turnarounds_day_utc_to_result_s", "day_utc", "to_result_s"),
        _where("ix_turnarounds_delivered", "day_utc", "to_delivery_s", condition="to_delivery_s IS NOT NULL"),
    )

    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), primary_key=True)
    day_utc: Mapped[str]
    to_result_s: Mapped[float]
    to_delivery_s: Mapped[float | None]


class TurnaroundDay(Base):
    """The turnarounds of one day, in the transaction of the last of them: how many, median and 95th percentile."""

    __tablename__ = "turnaround_days"

    day_utc: Mapped[str] = mapped_column(primary_key=True)
    results: Mapped[int]
    delivered: Mapped[int]
    to_result_p50_s: Mapped[float | None]
    to_result_p95_s: Mapped[float | None]
    to_delivery_p50_s: Mapped[float | None]
    to_delivery_p95_s: Mapped[float | None]


class Tally(Base):
    """How many rows of a table are in a state, kept in the transaction that changes them (see tallies.py)."""

    __tablename__ = "tallies"

    subject: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
    rows: Mapped[int]
    bytes: Mapped[int]


class ListingKind(Base):
    """What listings have in common (see listings.py). Empty texts: it has none."""

    __tablename__ = "listing_kinds"
    __table_args__ = (
        UniqueConstraint(
            "source", "scanner", "standing", "reason_code", "model", "finding", name="uq_listing_kinds_source"
        ),
        CheckConstraint("standing IN ('PENDING', 'ANALYSED', 'NOT_ANALYSED', 'FAILED', 'KEPT')", name="standing"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str]
    scanner: Mapped[str]
    standing: Mapped[str]
    reason_code: Mapped[str]
    model: Mapped[str]
    finding: Mapped[str]


class Listing(Base):
    """One line of the worklist: a series and one model's result on it, or a series without an outcome.

    received_at: of the first instance of the series. probability: of the result's first finding, 0 to 1.
    """

    __tablename__ = "listings"
    __table_args__ = (
        Index("ix_listings_kind_received_at", "kind", "received_at", "id"),
        _where("ix_listings_kind_probability", "kind", "probability", "id", condition="probability IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_pk: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    kind: Mapped[int] = mapped_column(ForeignKey("listing_kinds.id"))
    received_at: Mapped[float]
    result_id: Mapped[int | None] = mapped_column(ForeignKey("results.id"))
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    probability: Mapped[float | None]


class ListingWeek(Base):
    """How many listings of a kind are of series received in a week. week: its Monday (UTC); "": of all weeks."""

    __tablename__ = "listing_weeks"

    week: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rows: Mapped[int]


class CompletionEffort(Base):
    """What was tried at a PACS to complete an open series, so that a restart does not start over.

    instance_count: the instances that the series had; another one starts everything over.
    asked: how often the PACS was asked. fetched: fetches from it. next_at: when to ask again, Unix seconds.
    contradicted: the PACS once counted more instances than it listed.
    """

    __tablename__ = "completion_efforts"

    series_pk: Mapped[int] = mapped_column(ForeignKey("series.id"), primary_key=True)
    instance_count: Mapped[int]
    asked: Mapped[int]
    fetched: Mapped[int]
    contradicted: Mapped[bool]
    next_at: Mapped[float]


class Workitem(Base):
    """A step of a worklist that this node claimed, or tried to (see workitems.py).

    workitem_uid: SOP Instance UID of the step. transaction_uid: known to the node and the worklist alone.
    due_at: not taken up before. tries: how often its present state was taken up in vain.
    claimed_at: the worklist said that it is ours. decided_at: how it ends was decided.
    cancel_reason: the requester wants it cancelled. results: numbers of those that it ends with, as JSON.
    """

    __tablename__ = "workitems"
    __table_args__ = (
        UniqueConstraint("worklist", "workitem_uid", name="uq_workitems_worklist_workitem_uid"),
        CheckConstraint(
            "state IN ('CLAIMING', 'CLAIMED', 'FETCHING', 'ANALYSING', 'ENDING', 'COMPLETED', 'CANCELED', 'TAKEN', "
            "'LOST')",
            name="state",
        ),
        CheckConstraint("(state IN ('COMPLETED', 'CANCELED', 'TAKEN', 'LOST')) = (ended_at IS NOT NULL)", name="ended"),
        _where("ix_workitems_open", "worklist", "due_at", "id", condition="ended_at IS NULL"),
        _where("ix_workitems_ended_at", "ended_at", condition="ended_at IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    worklist: Mapped[str]
    workitem_uid: Mapped[str]
    transaction_uid: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    tries: Mapped[int]
    due_at: Mapped[float]
    created_at: Mapped[float]
    claimed_at: Mapped[float | None]
    decided_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    cancel_reason: Mapped[str | None]
    reason_code: Mapped[str | None]
    reason_text: Mapped[str | None]
    results: Mapped[str]
    error: Mapped[str | None]


class WorkitemSeries(Base):
    """Images of one series that a step is about. instances: SOP Instance UIDs as JSON. source: who has them."""

    __tablename__ = "workitem_series"
    __table_args__ = (UniqueConstraint("workitem_id", "series_uid", name="uq_workitem_series_workitem_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitems.id"))
    study_uid: Mapped[str]
    series_uid: Mapped[str] = mapped_column(index=True)
    instances: Mapped[str]
    source: Mapped[str]


class PauseRow(Base):
    """A source or a destination that a person has paused (see pauses.py). name: its AE title, or its name."""

    __tablename__ = "pauses"
    __table_args__ = (CheckConstraint("kind IN ('source', 'destination')", name="kind"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[float]
    paused_by: Mapped[str]


class SuspensionRow(Base):
    """A model that a person has suspended (see suspensions.py): it reports nothing."""

    __tablename__ = "suspensions"

    model_name: Mapped[str] = mapped_column(primary_key=True)
    suspended_at: Mapped[float]
    suspended_by: Mapped[str]
    reason: Mapped[str]


class HostRow(Base):
    """A machine that shares this index with others (see hosts.py). place: its data folder. parts: the processes
    that it runs, with commas.

    schema_version: that its program was made for. configuration: its settings as JSON, secrets hidden.
    ahead_s: how far its clock was ahead of the server's. stopped_at: when it was stopped in order.
    """

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(primary_key=True)
    parts: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    schema_version: Mapped[str]
    configuration: Mapped[str]
    started_at: Mapped[float]
    seen_at: Mapped[float]
    ahead_s: Mapped[float]
    stopped_at: Mapped[float | None]


class AuditRow(Base):
    """One thing that happened. Rows are chained by hash and never changed: triggers refuse changes. The oldest may go
    into archives (see audit_archive.py).

    Nearly all rows say that an instance was received. They are in no index by event, so that receiving stays cheap.
    """

    __tablename__ = "audit"
    __table_args__ = (
        _where("ix_audit_rare", "event", "outcome", "at", condition="event <> 'instance.received'"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    event: Mapped[str]
    patient_id: Mapped[str | None] = mapped_column(index=True)
    study_uid: Mapped[str | None] = mapped_column(index=True)
    series_uid: Mapped[str | None] = mapped_column(index=True)
    sop_uid: Mapped[str | None]
    job_id: Mapped[int | None]
    result_id: Mapped[int | None]
    peer_ae: Mapped[str | None]
    address: Mapped[str | None]
    outcome: Mapped[str | None]
    detail: Mapped[str | None]
    previous: Mapped[str]
    hash: Mapped[str]


class AuditArchive(Base):
    """A file that holds the audit rows after those of the archive before it. Never changed: triggers refuse that.

    last_id, rows, hash: number of its last row, how many they are, and hash of the last. previous: the hash that the
    first one follows. file, sha256: its name and the digest of its bytes.
    """

    __tablename__ = "audit_archives"

    last_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rows: Mapped[int]
    previous: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    file: Mapped[str]
    sha256: Mapped[str]
    archived_at: Mapped[float]


class WebUser(Base):
    """A person who may log in to the pages. roles: names, separated by spaces."""

    __tablename__ = "web_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    roles: Mapped[str]
    password_hash: Mapped[str]
    password_set_at: Mapped[float]
    created_at: Mapped[float]


class WebSession(Base):
    """A login that has not ended. token_sha256: of what the browser's cookie holds, so that a copy of the index lets
    nobody in. expires_at: when it ends at the latest.
    """

    __tablename__ = "web_sessions"

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    user_pk: Mapped[int] = mapped_column(ForeignKey("web_users.id"), index=True)
    address: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)


class NotificationRow(Base):
    """A message to a rule's mail addresses or webhook. content: JSON, empty once it was sent or given up.

    uid: by which a receiver tells a repeated one. due_at: while PENDING, the next attempt; while SENDING, the end of
    the lease. attempts: the fence as well.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint("state IN ('PENDING', 'SENDING', 'SENT', 'FAILED')", name="state"),
        _where("ix_notifications_waiting", "id", condition="state IN ('PENDING', 'SENDING')"),
        Index(None, "rule", "created_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    rule: Mapped[str]
    channel: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    content: Mapped[str]
    due_at: Mapped[float]
    set_at: Mapped[float]
    created_at: Mapped[float]
    attempts: Mapped[int]
    refusals: Mapped[int]
    error: Mapped[str | None]


class ForgettingRow(Base):
    """A patient who is forgotten on request (see forgetting.py).

    about: who, and which studies and series, as JSON; empty once it is done. reason: a person's words, without the
    patient. upto: the last audit row that may be about what was there; null while rows are being deleted. series,
    files, audit_rows: how many so far.
    """

    __tablename__ = "forgettings"
    __table_args__ = (_where("ix_forgettings_unfinished", "id", condition="ended_at IS NULL"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    asked_at: Mapped[float]
    asked_by: Mapped[str]
    reason: Mapped[str]
    about: Mapped[str]
    upto: Mapped[int | None]
    series: Mapped[int]
    files: Mapped[int]
    audit_rows: Mapped[int]
    ended_at: Mapped[float | None]


class ForgottenFile(Base):
    """A stored file that is to be deleted, since no row names it any longer."""

    __tablename__ = "forgotten_files"

    path: Mapped[str] = mapped_column(primary_key=True)
    forgetting_id: Mapped[int] = mapped_column(ForeignKey("forgettings.id"))


class WatchFacts(Base):
    """What a watched result tells of its scan, whether it was analysed or not (see watch_facts.py). No patient.

    at: when the result was recorded. age_years: whole years, 90 for all above. probability, positive: of the first
    finding.
    """

    __tablename__ = "watch_facts"
    __table_args__ = (
        CheckConstraint("age_years BETWEEN 0 AND 90", name="age"),
        Index("ix_watch_facts_model_digest_at_result_id", "model_digest", "at", "result_id"),
    )

    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), primary_key=True, autoincrement=False)
    model_digest: Mapped[str]
    at: Mapped[float]
    manufacturer: Mapped[str]
    scanner_model: Mapped[str]
    kernel: Mapped[str]
    software: Mapped[str]
    sex: Mapped[str]
    age_years: Mapped[int | None]
    thickness_mm: Mapped[float | None]
    spacing_mm: Mapped[float | None]
    pixel_mm: Mapped[float | None]
    kv: Mapped[float | None]
    mas: Mapped[float | None]
    hu_air: Mapped[float | None]
    hu_trachea: Mapped[float | None]
    hu_lung: Mapped[float | None]
    noise_hu: Mapped[float | None]
    lung_volume_ml: Mapped[float | None]
    probability: Mapped[float | None]
    positive: Mapped[bool | None]


class WatchReference(Base):
    """What a model's studies looked like when the watching of it began. content: JSON; digest: SHA-256 hex of it.

    studies: how many were analysed. frozen_by: empty if the node did it by itself. replaced_at: null while in use.
    """

    __tablename__ = "watch_references"
    __table_args__ = (
        _where("ix_watch_references_current", "model_digest", condition="replaced_at IS NULL", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_digest: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    content: Mapped[str]
    digest: Mapped[str]
    studies: Mapped[int]
    frozen_at: Mapped[float]
    frozen_by: Mapped[str]
    reason: Mapped[str]
    replaced_at: Mapped[float | None]


class WatchAssessment(Base):
    """How a watch stood at its last look of a day. scanner: empty for all of the model's studies."""

    __tablename__ = "watch_assessments"
    __table_args__ = (CheckConstraint("level IN ('too_few', 'ok', 'warn', 'alarm')", name="level"),)

    model_digest: Mapped[str] = mapped_column(primary_key=True)
    day_utc: Mapped[str] = mapped_column(primary_key=True)
    watch: Mapped[str] = mapped_column(primary_key=True)
    fact: Mapped[str] = mapped_column(primary_key=True)
    scanner: Mapped[str] = mapped_column(primary_key=True)
    level: Mapped[str]
    statistic: Mapped[str]
    sentence: Mapped[str]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    at: Mapped[float]


class WatchAlarm(Base):
    """An alarm of a watch, until it has ended. seen_at: when the watch last said so.

    acknowledged_why: in the person's words. It stays open until the watch finds nothing any more.
    """

    __tablename__ = "watch_alarms"
    __table_args__ = (
        _where(
            "ix_watch_alarms_open",
            "model_digest",
            "watch",
            "fact",
            "scanner",
            condition="ended_at IS NULL",
            unique=True,
        ),
        _where("ix_watch_alarms_standing", "raised_at", "id", condition="ended_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_digest: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    watch: Mapped[str]
    fact: Mapped[str]
    scanner: Mapped[str]
    sentence: Mapped[str]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    raised_at: Mapped[float]
    seen_at: Mapped[float]
    acknowledged_at: Mapped[float | None]
    acknowledged_by: Mapped[str | None]
    acknowledged_why: Mapped[str | None]
    ended_at: Mapped[float | None]


class CanaryRow(Base):
    """A study with a known result that the node sent to itself (see canaries.py).

    instance_uids: SOP Instance UIDs that were made for it, as JSON, until it is over. source: digest of the study that
    it was made of. stale_at: when it was noted that none has passed for too long. cleared_at: its images were deleted.
    """

    __tablename__ = "canary_runs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('ASKED', 'SENDING', 'WAITING', 'PASSED', 'DIFFERS', 'FAILED', 'ABANDONED')", name="state"
        ),
        Index(None, "state", "id"),
        Index(None, "asked_at"),
        _where("ix_canary_runs_held", "id", condition="ended_at IS NOT NULL AND cleared_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    asked_at: Mapped[float]
    asked_by: Mapped[str]
    due_at: Mapped[float]
    study_instance_uid: Mapped[str] = mapped_column(unique=True)
    series_instance_uid: Mapped[str] = mapped_column(unique=True)
    instance_uids: Mapped[str]
    instance_count: Mapped[int]
    source: Mapped[str]
    series_pk: Mapped[int | None] = mapped_column(ForeignKey("series.id"))
    ended_at: Mapped[float | None]
    said: Mapped[str]
    stale_at: Mapped[float | None]
    cleared_at: Mapped[float | None]


class CanaryExpectation(Base):
    """What a model is to say of a canary. source: digest of the study that it is made of. said: JSON."""

    __tablename__ = "canary_expectations"

    source: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str] = mapped_column(primary_key=True)
    model_digest: Mapped[str] = mapped_column(primary_key=True)
    said: Mapped[str]
    noted_at: Mapped[float]
    noted_by: Mapped[str]


properties = cast(Table, Property.__table__)
patients = cast(Table, Patient.__table__)
studies = cast(Table, Study.__table__)
series = cast(Table, Series.__table__)
instances = cast(Table, Instance.__table__)
conflicts = cast(Table, Conflict.__table__)
refused_instances = cast(Table, RefusedInstance.__table__)
rejections = cast(Table, Rejection.__table__)
jobs = cast(Table, Job.__table__)
batches = cast(Table, Batch.__table__)
batch_cases = cast(Table, BatchCase.__table__)
results = cast(Table, Result.__table__)
verdicts = cast(Table, VerdictRow.__table__)
examinations = cast(Table, ExaminationRow.__table__)
codes = cast(Table, CodeRow.__table__)
findings = cast(Table, FindingRow.__table__)
measurements = cast(Table, MeasurementRow.__table__)
model_weights = cast(Table, ModelWeights.__table__)
result_objects = cast(Table, ResultObject.__table__)
deliveries = cast(Table, Delivery.__table__)
messages = cast(Table, MessageRow.__table__)
turnarounds = cast(Table, Turnaround.__table__)
turnaround_days = cast(Table, TurnaroundDay.__table__)
tallies = cast(Table, Tally.__table__)
listing_kinds = cast(Table, ListingKind.__table__)
listings = cast(Table, Listing.__table__)
listing_weeks = cast(Table, ListingWeek.__table__)
completion_efforts = cast(Table, CompletionEffort.__table__)
workitems = cast(Table, Workitem.__table__)
workitem_series = cast(Table, WorkitemSeries.__table__)
pauses = cast(Table, PauseRow.__table__)
suspensions = cast(Table, SuspensionRow.__table__)
hosts = cast(Table, HostRow.__table__)
audit = cast(Table, AuditRow.__table__)
audit_archives = cast(Table, AuditArchive.__table__)
notifications = cast(Table, NotificationRow.__table__)
forgettings = cast(Table, ForgettingRow.__table__)
forgotten_files = cast(Table, ForgottenFile.__table__)
watch_facts = cast(Table, WatchFacts.__table__)
watch_references = cast(Table, WatchReference.__table__)
watch_assessments = cast(Table, WatchAssessment.__table__)
watch_alarms = cast(Table, WatchAlarm.__table__)
canary_runs = cast(Table, CanaryRow.__table__)
canary_expectations = cast(Table, CanaryExpectation.__table__)
web_users = cast(Table, WebUser.__table__)
web_sessions = cast(Table, WebSession.__table__)

# These need the columns themselves: an order, and an expression of a view.
_where(
    "ix_jobs_queue",
    jobs.c.shadow,
    jobs.c.priority.desc(),
    jobs.c.due_at,
    jobs.c.id,
    condition="state = 'QUEUED' AND batch_id IS NULL",
)
_where(
    "ix_audit_connections",
    func.strftime(literal_column("'%Y-%m-%d %H:%M:%f'"), audit.c.at, literal_column("'unixepoch'")),
    condition="event IN ('association.aborted', 'association.accepted', 'association.rejected', "
    "'association.released', 'connection.aborted', 'connection.closed', 'connection.refused')",
)
