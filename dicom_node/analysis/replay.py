"""Replay of a stored result: run its model on its files again, and see whether the result is the same."""

import time

from config.settings import Settings
from dicom_node.analysis.analyse import Analysis, analyse
from dicom_node.analysis.comparison import words
from dicom_node.analysis.open_model import OpenModel, open_model
from dicom_node.analysis.recorded import CHANGE, COLUMNS, PROBABILITY, Replay, said, values_of
from dicom_node.analysis.result_row import new_result
from dicom_node.errors import NodeError
from storage import audit, examinations, results, series
from storage.database import Database
from storage.files import FileStore
from storage.jobs import ModelRef
from storage.lookup import find_result
from storage.results import ResultInput


def replay(settings: Settings, database: Database, files: FileStore, wanted: str, device: str = "") -> Replay:
    """Recompute a result from the stored files with the model that it names, compare, and audit the comparison.

    wanted: a result's number, or a Series Instance UID for its latest result.
    device: as in `choose_device`; empty for the kind of device that the result was computed on.
    Raises NotFound for an unknown result, CorruptFile if an image is gone or altered, ModelError if the model
    is, NodeError if there is nothing to recompute.
    """
    with database.read() as tx:
        result_id = find_result(tx, wanted)
        row, source = results.get_result(tx, result_id), results.input_of(tx, result_id)
        held = series.series_instances(tx, source.series_pk)
        change = examinations.change_of(tx, result_id)
        earlier = examinations.earlier_result(tx, change.earlier_id) if change else None
    try:
        analysis, opened = _recomputed(settings, files, row, source, held, device)
    except Exception as error:
        _audit(database, result_id, source, "FAILED", error=type(error).__name__)
        raise
    new, recorded = new_result(analysis, opened.identity), values_of(row)
    found = {name: getattr(new, name) for name in COLUMNS} | {"versions": dict(new.versions)} | said(new.content)
    if row["seal"] == results.FIRST_SEAL:  # recorded when the index had no place for more
        found = {name: value for name, value in found.items() if name in recorded}
    if change is not None and earlier is not None:
        name = f"{CHANGE} since result {change.earlier_id}"
        recorded[name], found[name] = change.said, words(opened, change.examination, analysis, earlier)
    done = Replay(result_id, source.series_instance_uid, recorded, found)
    outcome = "AGREES" if done.agrees else "DIFFERS"
    told = {PROBABILITY: found.get(PROBABILITY), "reason_code": new.reason_code}
    _audit(database, result_id, source, outcome, differences=list(done.differences), **told)
    return done


def _recomputed(
    settings: Settings,
    files: FileStore,
    row: dict[str, object],
    source: ResultInput,
    held: list[series.StoredInstance],
    device: str,
) -> tuple[Analysis, OpenModel]:
    if source.refusal_code is not None:
        raise NodeError(
            f"result {row['id']} was refused before any analysis ({source.refusal_code}): nothing can be recomputed"
        )
    then = _made_from(row, source, held)
    # A refusal records neither device nor precision: it is replayed with the node's present settings.
    precision = str(row["precision"])
    speed = settings.worker.precision if not precision else "exact" if precision == "float32" else "fast"
    worker = settings.worker.model_copy(update={"precision": speed})
    model = ModelRef(str(row["model_name"]), str(row["model_version"]), str(row["model_digest"]))
    where = device or ("cuda" if str(row["device"]).startswith("cuda") else "cpu" if row["device"] else "auto")
    opened = open_model(settings.model_copy(update={"worker": worker}), model, where)
    with files.at_hand(then) as paths:
        return analyse(paths, opened, own=settings.report), opened


def _made_from(
    row: dict[str, object], source: ResultInput, held: list[series.StoredInstance]
) -> list[series.StoredInstance]:
    """The instances that the result was made from: what came later is not among them."""
    then = held
    if series.instances_digest(held) != source.instances_digest:
        then = [instance for instance in held if instance.received_at <= source.last_instance_at]
    if series.instances_digest(then) != source.instances_digest:
        raise NodeError(f"result {row['id']}: the series no longer holds the instances that it was made from")
    return then


def _audit(database: Database, result_id: int, source: ResultInput, outcome: str, **detail: object) -> None:
    with database.transaction() as tx:
        audit.append(
            tx,
            time.time(),
            "result.replayed",
            audit.Subject(
                series_uid=source.series_instance_uid,
                study_uid=source.study_instance_uid,
                patient_id=source.patient_id,
                job_id=source.job_id,
                result_id=result_id,
            ),
            outcome=outcome,
            detail=detail,
        )
