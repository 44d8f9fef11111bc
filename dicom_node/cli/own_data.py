"""What the node itself holds, for training and evaluation: its series as scans, its results as predictions."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Label, and_, func, select

from config.coding import UNCALIBRATED_OUTPUT
from config.settings import Settings
from inference.evaluation.errors import EvaluationError, Problem
from inference.evaluation.folder import FolderPredictions
from inference.evaluation.predictions import read_labels
from inference.models.cards import read_card
from inference.models.registry import find_model
from inference.volume.scans import Scan, age_at
from storage.coded import positive_column
from storage.files import FileStore
from storage.models import codes, findings, instances, measurements, patients, results, series, studies
from storage.results import ResultOutcome
from storage.series_state import SeriesState


@dataclass(frozen=True)
class StoredResult:
    """The current probability of one series. names: everything that a label may call it by.

    scan: its subgroups' values, such as manufacturer, sex and age.  positive: of the first finding.
    uncalibrated: what the networks gave, if the probability is a site's calibration of it.
    """

    names: frozenset[str]
    result_id: int
    series_instance_uid: str
    scan: Mapping[str, str]
    patient: str
    sex: str
    manufacturer: str
    positive: bool | None
    probability: float
    uncalibrated: float | None
    instance_count: int
    model: str
    model_digest: str


def stored_scans(tx: Connection, files: FileStore) -> list[Scan]:
    """Every closed series whose images are still here, but for canaries."""
    paths: dict[int, list[str]] = {}
    gone = set()
    for row in tx.execute(select(instances.c.series_pk, instances.c.path, instances.c.gone_at)):
        paths.setdefault(row.series_pk, []).append(row.path)
        if row.gone_at is not None:
            gone.add(row.series_pk)
    rows = tx.execute(
        select(
            series.c.id,
            series.c.series_instance_uid,
            studies.c.study_instance_uid,
            studies.c.accession_number,
            studies.c.study_date,
            patients.c.patient_id,
            patients.c.sex,
            patients.c.birth_date,
        )
        .select_from(series.join(studies).join(patients))
        .where(series.c.state == SeriesState.CLOSED.value, series.c.imported.is_(False), series.c.canary.is_(False))
        .order_by(series.c.id)
    )
    return [
        Scan(
            paths=tuple(files.absolute(path) for path in sorted(paths[row.id])),
            names=_names(row.series_instance_uid, row.study_instance_uid, row.accession_number, row.patient_id),
            patient=row.patient_id or "",
            sex=row.sex or "",
            age=age_at(row.birth_date or "", row.study_date or ""),
            study=row.study_instance_uid,
        )
        for row in rows
        if row.id in paths and row.id not in gone
    ]


def stored_results(tx: Connection, *, shadow: bool) -> list[StoredResult]:
    """The current result of every series that has a finding with a certainty, but for canaries; of the shadow model if
    `shadow`."""
    first = select(func.min(findings.c.id)).where(findings.c.result_id == results.c.id).correlate(results)
    rows = tx.execute(
        select(
            series.c.series_instance_uid,
            series.c.instance_count,
            series.c.manufacturer,
            studies.c.study_instance_uid,
            studies.c.accession_number,
            studies.c.study_date,
            patients.c.patient_id,
            patients.c.sex,
            patients.c.birth_date,
            results.c.id,
            positive_column(codes).label("positive"),
            findings.c.certainty,
            results.c.model_name,
            results.c.model_version,
            results.c.model_digest,
            _uncalibrated(),
        )
        .select_from(results.join(series, series.c.id == results.c.series_pk).join(studies).join(patients))
        .join(findings, findings.c.id == first.scalar_subquery())
        .outerjoin(codes, codes.c.id == findings.c.interpretation_id)
        .where(
            findings.c.certainty.is_not(None),
            results.c.superseded_at.is_(None),
            results.c.shadow.is_(shadow),
            results.c.batch_id.is_(None),
            series.c.canary.is_(False),
            results.c.outcome == ResultOutcome.ANALYSED.value,
        )
        .order_by(results.c.id)
    )
    return [
        StoredResult(
            names=_names(row.series_instance_uid, row.study_instance_uid, row.accession_number, row.patient_id),
            patient=row.patient_id or "",
            sex=row.sex or "",
            manufacturer=row.manufacturer or "",
            result_id=row.id,
            series_instance_uid=row.series_instance_uid,
            scan=scan_of(row),
            positive=None if row.positive is None else bool(row.positive),
            probability=row.certainty,
            uncalibrated=None if row.uncalibrated is None else row.uncalibrated / 100,
            instance_count=row.instance_count,
            model=f"{row.model_name} {row.model_version}",
            model_digest=row.model_digest,
        )
        for row in rows
    ]


def scan_of(row: Any) -> dict[str, str]:
    """What subgroups are made of. row: with manufacturer, sex, birth_date and study_date."""
    age = age_at(row.birth_date or "", row.study_date or "")
    return {"manufacturer": row.manufacturer or "", "sex": row.sex or "", "age": str(age)}


def _uncalibrated() -> Label[float | None]:
    """The output before calibration of each result, in percent; null without one."""
    concept = and_(codes.c.value == UNCALIBRATED_OUTPUT.value, codes.c.scheme == UNCALIBRATED_OUTPUT.scheme)
    found = select(measurements.c.value).select_from(measurements.join(codes, measurements.c.concept_id == codes.c.id))
    mine = found.where(measurements.c.result_id == results.c.id, concept).correlate(results).limit(1)
    return mine.scalar_subquery().label("uncalibrated")


def outputs_of(tx: Connection, labels: Path, digest: str, calibrated: Set[str]) -> FolderPredictions:
    """What the networks of a model gave for the labelled cases, whatever a site's calibration made of it.

    digest: of the model.  calibrated: of its calibrated versions.
    Raises UnusablePredictions for labels that cannot be used, EvaluationError if no labelled case has a result.
    """
    found = [result for result in stored_results(tx, shadow=False) if result.model_digest == digest]
    for result in stored_results(tx, shadow=False):
        if result.model_digest in calibrated and result.uncalibrated is not None:
            found.append(replace(result, probability=result.uncalibrated))
    return _labelled(labels, found, "result of this model")


def node_predictions(tx: Connection, settings: Settings, labels: Path, *, shadow: bool) -> FolderPredictions:
    """The node's current results of the labelled cases, of its reporting or of its shadow model.

    Results of other models than the one that the settings name are left out; if the settings name no shadow model,
    those of the last one count.
    Raises UnusablePredictions for labels that cannot be used, EvaluationError if no labelled case has a result.
    """
    every = stored_results(tx, shadow=shadow)
    digest = _digest(settings, every, shadow=shadow)
    of_model = [result for result in every if result.model_digest == digest]
    kind = "shadow" if shadow else "reporting"
    predictions = _labelled(labels, of_model, f"result of its {kind} model")
    return replace(predictions, unlabelled=len(every) - len(predictions.rows))


def _labelled(labels: Path, found: Sequence[StoredResult], what: str) -> FolderPredictions:
    """The results of the labelled cases. what: they are, for the error that there are none."""
    truth = read_labels(labels)
    by_case = _by_case(found, set(truth.rows))
    patients = sorted({result.patient for result in by_case.values()})
    rows, refused = [], []
    for case, row in truth.rows.items():
        result = by_case.get(case)
        if result is None:
            refused.append(Problem(truth.file, row.line, truth.column, "the node has no result of this model for it"))
            continue
        given = {name: value for name, value in row.others.items() if value}
        rows.append(
            {
                "sex": result.sex,
                "manufacturer": result.manufacturer,
                **given,
                "patient": row.roles.get("patient", str(patients.index(result.patient) + 1)),
                "case": case,
                "probability": repr(result.probability),
                "label": row.roles["label"],
            }
        )
    if not rows:
        raise EvaluationError(f"the node has no {what} for any case of {truth.file}")
    return FolderPredictions(tuple(rows), tuple(refused), len(found) - len(rows))


def _digest(settings: Settings, every: Sequence[StoredResult], *, shadow: bool) -> str:
    entry = next((entry for entry in settings.model_entries if entry.shadow is shadow), None)
    if entry is None:
        return every[-1].model_digest if every else ""
    return read_card(find_model(settings.models_dir, entry.name or None, entry.version or None)).digest()


def _by_case(results_: Sequence[StoredResult], cases: Set[str]) -> dict[str, StoredResult]:
    """Of a case's several series the one with the most instances."""
    found: dict[str, StoredResult] = {}
    for result in sorted(results_, key=lambda result: result.instance_count):
        for name in result.names & cases:
            found[name] = result
    return found


def _names(*values: str | None) -> frozenset[str]:
    return frozenset(value for value in values if value)
