"""evaluate --adopt: a site's own evaluation, which reports then print instead of the published figures."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import Settings
from dicom_node.cli.common import database_of
from dicom_node.errors import NodeError
from inference.models.site_evaluation import Share, SiteEvaluation, adopt
from storage import audit

if TYPE_CHECKING:
    from inference.evaluation.assessment import Assessment
    from inference.evaluation.intervals import Interval


def adopt_evaluation(settings: Settings, assessment: Assessment, site: str) -> Path:
    """Keep the figures at the model's threshold as this site's own, with an audit row. Returns their file.

    Raises NodeError if it is not known which model, at which threshold or which site they are of, or if a class is
    missing.
    """
    model, row, name = assessment.model, assessment.threshold, site or settings.report.institution
    if model is None:
        raise NodeError("--adopt needs predictions of a known model: evaluate scans, a data set, or node")
    if row.threshold != model.threshold:
        raise NodeError(f"--adopt: reports use the model's threshold {model.threshold:g}; leave --threshold out")
    if not name:
        raise NodeError("--adopt: give --site, or set [report] institution: reports say whose figures they are")
    shares = [
        _share(row.intervals[what], value)
        for what, value in (("sensitivity", row.sensitivity), ("specificity", row.specificity))
    ]
    evaluation = SiteEvaluation(
        site=name,
        date=date.today().isoformat(),
        model=f"{model.name} {model.version}",
        model_digest=model.digest,
        threshold=row.threshold,
        cases=assessment.cases,
        positives=assessment.positives,
        sensitivity=shares[0],
        specificity=shares[1],
        predictions_sha256=assessment.sha256,
    )
    file = adopt(evaluation, settings.models_dir)
    with database_of(settings, create=True).transaction() as tx:
        detail = {
            "model": evaluation.model,
            "model_digest": model.digest,
            "figures": evaluation.operating_point().source,
        }
        audit.append(tx, time.time(), "model.evaluation-adopted", outcome="ADOPTED", detail=detail)
    return file


def _share(interval: Interval | None, value: float | None) -> Share:
    if interval is None or value is None:
        raise NodeError("--adopt needs cases of both labels")
    return value, interval.low, interval.high
