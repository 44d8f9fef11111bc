"""Replay of a stored result: run its model on its files again, and see whether the result is the same."""

import time
from dataclasses import dataclass

from config.settings import Settings
from dicom_node.analysis.analyse import Analysis, analyse
from dicom_node.analysis.comparison import words
from dicom_node.analysis.open_model import OpenModel, open_model
from dicom_node.analysis.result_row import new_result
from dicom_node.errors import NodeError
from storage import audit, examinations, results, series
from storage.coded import Content
from storage.database import Database
from storage.files import FileStore
from storage.jobs import ModelRef
from storage.lookup import find_result
from storage.results import ResultInput

# The same input, model, device and versions give the same bytes; others add in a different order.
PROBABILITY_TOLERANCE = 1e-3
MEASUREMENT_TOLERANCE = 1e-3  # share of the measurement
PROBABILITY = "probability"
CHANGE = "change"

_SURROUNDINGS = ("device", "precision", "versions")
_COLUMNS = ("outcome", "reason_code", "pixel_digest", "model_digest", *_SURROUNDINGS)


@dataclass(frozen=True)
class Replay:
    """A recorded result and the recomputed one.

    recorded, found: values by name: what it says, what it is of, and with what it was computed.
    """

    result_id: int
    series_instance_uid: str
    recorded: dict[str, object]
    found: dict[str, object]

    @property
    def differences(self) -> tuple[str, ...]:
        """Names of the values that are not the same."""
        names = dict.fromkeys([*self.recorded, *self.found])
        return tuple(name for name in names if self.recorded.get(name) != self.found.get(name))

    @property
    def agrees(self) -> bool:
        """Equal, or within the tolerances if device, precision or versions differ from those of the recorded result."""
        allowed = set(_SURROUNDINGS)
        if allowed & set(self.differences):
            # The words of a change hold rounded numbers; the numbers themselves are compared too.
            allowed |= {name for name in self.differences if self._is_close(name) or name.startswith(CHANGE)}
        return set(self.differences) <= allowed

    def _is_close(self, name: str) -> bool:
        recorded, found = self.recorded.get(name), self.found.get(name)
        if not isinstance(recorded, float) or not isinstance(found, float):
            return False
        allowed = PROBABILITY_TOLERANCE if name.startswith(PROBABILITY) else MEASUREMENT_TOLERANCE * abs(recorded)
        return abs(found - recorded) <= allowed


def _said(content: Content) -> dict[str, object]:
    """What a result says, by name: `probability` and `positive` of its finding, and each measurement."""
    said: dict[str, object] = {}
    for number, finding in enumerate(content.findings, 1):
        of = "" if number == 1 else f" of {finding.concept.meaning}"
        said |= {f"{PROBABILITY}{of}": finding.certainty, f"positive{of}": finding.positive}
    return said | {measured.name: measured.value for measured in content.measurements}


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
    new, content = new_result(analysis, opened.identity), row["content"]
    assert isinstance(content, Content)  # noqa: S101 - as `get_result` says
    recorded = {name: row[name] for name in _COLUMNS} | _said(content)
    found = {name: getattr(new, name) for name in _COLUMNS} | {"versions": dict(new.versions)} | _said(new.content)
    if row["seal"] == results.FIRST_SEAL:  # recorded when the index had no place for more
        found = {name: value for name, value in found.items() if name in recorded}
    if change is not None and earlier is not None:
        name = f"{CHANGE} since result {change.earlier_id}"
        recorded[name], found[name] = change.said, words(opened, change.examination, analysis, earlier)
    done = Replay(result_id, source.series_instance_uid, recorded, found)
    outcome = "AGREES" if done.agrees else "DIFFERS"
    said = {PROBABILITY: found.get(PROBABILITY), "reason_code": new.reason_code}
    _audit(database, result_id, source, outcome, differences=list(done.differences), **said)
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
