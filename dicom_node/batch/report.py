"""What became of a batch: an outcome for each case, and with labels the evaluation of its model."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from dicom_node.batch.labels import digest_of
from dicom_node.errors import NodeError
from inference.evaluation.errors import Problem
from inference.evaluation.folder import FolderPredictions
from inference.evaluation.predictions import read_labels
from storage.batches import Batch
from storage.coded import contents_of
from storage.models import batch_cases, patients, results, series, studies

NOT_ENDED = "it has not been analysed yet"
AT_ONCE = 500


@dataclass(frozen=True)
class CaseOutcome:
    """One case. probability: of its first finding, None without one. measurements: by name and unit."""

    case_id: int
    series_uid: str
    label_line: int | None
    outcome: str
    reason_code: str
    reason_text: str
    probability: float | None
    measurements: dict[str, float]
    result_id: int | None
    patient_pk: int | None
    patient_id: str
    sex: str
    manufacturer: str
    instances: int


def outcomes(tx: Connection, batch_id: int) -> Iterator[CaseOutcome]:
    """Every case of a batch, in the order in which they were found."""
    after = 0
    while True:
        query = (
            select(
                batch_cases,
                results.c.outcome,
                results.c.reason_code.label("not_analysed"),
                results.c.reason_text.label("not_analysed_text"),
                series.c.manufacturer,
                series.c.instance_count,
                studies.c.patient_pk,
                patients.c.patient_id,
                patients.c.sex,
            )
            .select_from(
                batch_cases.outerjoin(results, results.c.id == batch_cases.c.result_id)
                .outerjoin(series, series.c.id == batch_cases.c.series_pk)
                .outerjoin(studies, studies.c.id == series.c.study_pk)
                .outerjoin(patients, patients.c.id == studies.c.patient_pk)
            )
            .where(batch_cases.c.batch_id == batch_id, batch_cases.c.id > after)
            .order_by(batch_cases.c.id)
            .limit(AT_ONCE)
        )
        rows = tx.execute(query).all()
        if not rows:
            return
        contents = contents_of(tx, [row.result_id for row in rows if row.result_id is not None])
        yield from (_outcome(row, contents.get(row.result_id)) for row in rows)
        after = rows[-1].id


def _outcome(row: Any, content: Any) -> CaseOutcome:
    finding = content.findings[0] if content and content.findings else None
    measured = {f"{one.name} ({one.unit.value})": one.value for one in content.measurements} if content else {}
    return CaseOutcome(
        case_id=row.id,
        series_uid=row.series_uid,
        label_line=row.label_line,
        outcome=row.outcome or row.state,
        reason_code=row.not_analysed or row.reason_code or "",
        reason_text=row.not_analysed_text or row.reason_text or "",
        probability=finding.certainty if finding else None,
        measurements=measured,
        result_id=row.result_id,
        patient_pk=row.patient_pk,
        patient_id=row.patient_id or "",
        sex=row.sex or "",
        manufacturer=row.manufacturer or "",
        instances=row.instance_count or 0,
    )


def write_cases(path: Path, cases: Sequence[CaseOutcome]) -> None:
    """A table of every case, which names series and so stays at the site. Raises OSError."""
    measured = sorted({name for case in cases for name in case.measurements})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        fixed = ("case", "series_instance_uid", "outcome", "reason_code", "reason", "probability", "result")
        table.writerow([*fixed, *measured])
        for case in cases:
            values = [case.case_id, case.series_uid, case.outcome, case.reason_code, case.reason_text]
            values += ["" if case.probability is None else repr(case.probability), case.result_id or ""]
            table.writerow([*values, *(case.measurements.get(name, "") for name in measured)])


def labelled(batch: Batch, labels: Path, cases: Sequence[CaseOutcome]) -> FolderPredictions:
    """The batch's probabilities with their labels, and why labelled cases have none.

    Of a case's several series the one with the most instances counts, or the next one if that was refused.
    Raises NodeError if the file is not the one that the batch was created with; as `read_labels` does.
    """
    if batch.labels_sha256 != digest_of(labels):
        raise NodeError(f"{labels}: not the labels that batch {batch.id} was created with: its SHA-256 differs")
    truth = read_labels(labels)
    by_line: dict[int, list[CaseOutcome]] = {}
    for case in sorted(cases, key=lambda one: -one.instances):
        if case.label_line is not None:
            by_line.setdefault(case.label_line, []).append(case)
    rows, refused = [], []
    numbers: dict[object, str] = {}
    for name, row in truth.rows.items():
        found = by_line.get(row.line, [])
        best = next((one for one in found if one.probability is not None), None)
        if best is None:
            refused.append(Problem(truth.file, row.line, truth.column, _why(found)))
            continue
        patient = numbers.setdefault(best.patient_id or f"case {name}", str(len(numbers) + 1))
        given = {key: value for key, value in row.others.items() if value}
        figures = {"case": name, "probability": repr(best.probability), "label": row.roles["label"]}
        own = {"sex": best.sex, "manufacturer": best.manufacturer}
        rows.append({**own, **given, "patient": row.roles.get("patient", patient), **figures})
    unlabelled = sum(case.label_line is None for case in cases)
    return FolderPredictions(tuple(rows), tuple(refused), unlabelled)


def _why(found: Sequence[CaseOutcome]) -> str:
    if not found:
        return "the batch has no series of it"
    first = found[0]
    if first.reason_code:
        return f"{first.reason_code}: {first.reason_text}"
    return NOT_ENDED if first.outcome in ("WAITING", "QUEUED") else "the result has no probability"
