"""What a person may have the node do with a series, a result or a delivery, from the command line or the pages.

Each act runs in the caller's transaction, which also takes the audit row: what it is about, and who had it done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.errors import NodeError
from storage import audit, deliveries, jobs, model_outcomes, reopening, results
from storage import series as store
from storage.deliveries import DELIVERY, DeliveryState
from storage.jobs import ModelRef


@dataclass(frozen=True)
class Done:
    """What was done. detail: for the audit row and `--json`.  sentence: for the person who did it."""

    about: audit.Subject
    detail: dict[str, Any]
    sentence: str


def retry_delivery(tx: Connection, delivery_id: int, now: float) -> Done:
    """Send now what failed or waits for its next attempt; ask now about what is unconfirmed. Raises StorageError."""
    row = DELIVERY.row(tx, delivery_id)
    again = deliveries.retry if row["state"] == DeliveryState.FAILED else deliveries.hurry
    again(tx, delivery_id, now)
    about = audit.Subject(row["series_uid"], row["study_uid"], None, row["patient_id"], row["job_id"], row["result_id"])
    return Done(about, {"delivery": delivery_id}, f"Delivery {delivery_id} goes on now.")


def retry_job(tx: Connection, job_id: int, now: float, about: audit.Subject | None = None) -> Done:
    """Queue a failed analysis again, with all its attempts. Raises NodeError for one of a batch, StorageError."""
    if jobs.batch_of(tx, job_id) is not None:
        raise NodeError(f"job {job_id} is of a batch: create the batch again, which takes up what failed")
    jobs.retry(tx, job_id, now)
    return Done(about or audit.Subject(job_id=job_id), {"job": job_id}, f"Job {job_id} is queued again.")


def retry_series(tx: Connection, series_pk: int, now: float) -> Done:
    """Queue the failed analyses of a series again, one for each model that failed.

    Raises NodeError if it has no job, StorageError.
    """
    record = store.get_series(tx, series_pk)
    if record.job_id is None:
        raise NodeError("this series has no job yet")
    # If none has failed, the error says what state the latest is in.
    job_ids = model_outcomes.failed_jobs_of(tx, series_pk) or [record.job_id]
    first, *more = (retry_job(tx, job_id, now, subject_of(record, job_id, None)) for job_id in job_ids)
    if not more:
        return first
    sentence = " ".join(done.sentence for done in (first, *more))
    return Done(first.about, {**first.detail, "jobs": job_ids}, sentence)


def resend(tx: Connection, settings: Settings, result_id: int, to: Sequence[str], now: float) -> Done:
    """Send the objects of a result again, byte for byte.

    to: names of destinations; empty: those that it went to, or else those of its source.
    Raises NodeError if there is no such destination, StorageError.
    """
    source = results.input_of(tx, result_id)
    record = store.get_series(tx, source.series_pk)
    names = list(to) or [row["destination"] for row in deliveries.of_result(tx, result_id)]
    whose = settings.destinations_of_canaries if record.canary else settings.destinations_of(record.calling_ae)
    names = names or [found.name for found in whose]
    if record.canary:
        _refuse_others_than(settings.canary.destination, names)
    else:
        _refuse_wrong_destinations(settings, names)
    sent = deliveries.resend(tx, result_id, names, now)
    return Done(
        subject_of(record, source.job_id, result_id),
        {"result": result_id, "deliveries": sent, "destinations": names},
        f"Result {result_id} is sent again to {', '.join(names)} (deliveries {', '.join(map(str, sent))}).",
    )


def _refuse_others_than(of_canaries: str, names: list[str]) -> None:
    if not of_canaries or set(names) != {of_canaries}:
        where = f"is sent to {of_canaries} alone" if of_canaries else "goes nowhere: [canary] names no destination"
        raise NodeError(f"this is a result of a canary, which {where}")


def _refuse_wrong_destinations(settings: Settings, names: list[str]) -> None:
    if not names:
        raise NodeError("no destination takes results: name one in [[destinations]]")
    for name in names:
        found = settings.destination(name)
        if found is None or not found.send_results:
            known = ", ".join(one.name for one in settings.destinations if one.send_results) or "none is configured"
            raise NodeError(f"there is no destination {name!r} for results; destinations: {known}")


def reanalyse(tx: Connection, settings: Settings, series_pk: int, wanted: str | None, now: float) -> Done:
    """Analyse a series again; the new result replaces the former one.

    wanted: NAME[:VERSION] of another model than the first one of the settings.
    Raises ModelError if there is no such model, NodeError if no model is for this source, StorageError.
    """
    record = store.get_series(tx, series_pk)
    chosen, beside = _models(settings, wanted, None if record.canary else record.calling_ae)
    source = settings.source(record.calling_ae)
    priority = source.priority if source else 0
    job_id = reopening.analyse_again(tx, series_pk, now, chosen, priority, beside)
    model = f"{chosen.name} {chosen.version}"
    return Done(
        subject_of(record, job_id, record.result_id),
        {"series": series_pk, "job": job_id, "model": model},
        f"Series {series_pk} is analysed again with {model} (job {job_id}).",
    )


def _models(settings: Settings, wanted: str | None, calling_ae: str | None) -> tuple[ModelRef, tuple[ModelRef, ...]]:
    """NAME[:VERSION], or else the first model for this source; and the others that report beside it. A canary, which
    has no source, is for all of them.

    Raises ModelError when there is none of that name, NodeError when no model is for this source.
    """
    from dicom_node.analysis.current_model import current_models, model_named

    models = current_models(settings) if calling_ae is None else current_models(settings).of(calling_ae)
    reporting = (models.reporting, *models.beside) if models else ()
    if wanted is None:
        if not reporting:
            raise NodeError(f"no model in [[models]] is for series from {calling_ae}; name one with --model")
        return reporting[0], reporting[1:]
    name, _, version = wanted.partition(":")
    chosen = model_named(settings, name, version)
    in_use = any(model.digest == chosen.digest for model in reporting)
    return chosen, tuple(m for m in (reporting if in_use else reporting[1:]) if m.digest != chosen.digest)


def subject_of(record: store.SeriesRecord, job_id: int | None, result_id: int | None) -> audit.Subject:
    """What an audit row about a series names."""
    return audit.Subject(
        series_uid=record.series_instance_uid,
        study_uid=record.study_instance_uid,
        patient_id=record.patient_id,
        job_id=job_id,
        result_id=result_id,
    )
